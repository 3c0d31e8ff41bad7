//! The packages that the client depends on, under `/__modal/deps`.

use super::{
    Bundle, BundleError, Bundles, Package, Talk, build::make_folder, client::belongs_anywhere, own,
    wheels::LocalWheel,
};
use crate::{
    ContentHash,
    pypi::{Libc, MarkerEnv, Requirement, Target, Version, text_in_wheel, unpack_wheel},
};
use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

/// The newest image builder version whose images have the client's dependencies installed in them.
const LAST_BUILDER_WITHOUT: &str = "2024.10";
/// Wheels fetched side by side.
const FETCHES_MAX: usize = 4;

impl Bundles {
    /// The packages that the client of this version needs in images of the builder version `builder`, for
    /// CPython 3.`python_minor` on `libc`: `/__modal/deps`, with what is our own under `/pkg`. `None` for builder
    /// versions up to 2024.10, whose images have them installed. Made on first use; `talk` hears how it
    /// goes on.
    pub fn dependencies(
        &self,
        client_version: &str,
        builder: &str,
        python_minor: u8,
        libc: Libc,
        talk: Talk<'_>,
    ) -> Result<Option<Bundle>, BundleError> {
        if !needs_bundle(builder)? {
            return Ok(None);
        }
        let version: Version = client_version.parse()?;
        let target = Target { python_minor, libc, arch: std::env::consts::ARCH };
        let pins = self.pins(&version, builder, &target, talk)?;
        // Lists of one builder version may differ between client versions; the same list is the same bundle.
        let listed: String = pins.iter().map(|pin| format!("{}{}\n", pin.name, pin.specifiers)).collect();
        let digest = ContentHash::of(format!("{listed}{}", own::digest()).as_bytes()).to_hex();
        let platform = format!("cp3{python_minor}-{}-{}", libc.tag(), target.arch);
        self.obtain(&format!("deps-{builder}-{platform}-{}", &digest[..8]), |tree| {
            talk(&format!("preparing the client's {} dependencies for {platform}", pins.len()));
            let wheels = self.fetch_all(&pins, &target, talk)?;
            let deps = tree.join("__modal/deps");
            make_folder(&tree.join("__modal"))?;
            make_folder(&deps)?;
            for wheel in &wheels {
                unpack_wheel(&wheel.path, &deps, &belongs_anywhere)?;
            }
            own::write(tree)?;
            Ok(wheels.into_iter().map(Package::of).collect())
        })
        .map(Some)
    }

    /// What `modal/builder/<builder>.txt` of the client's wheel asks for on this interpreter.
    fn pins(
        &self,
        version: &Version,
        builder: &str,
        target: &Target,
        talk: Talk<'_>,
    ) -> Result<Vec<Requirement>, BundleError> {
        let wheel = self.inner.wheels.client(version, talk)?;
        let list = text_in_wheel(&wheel.path, &format!("modal/builder/{builder}.txt"))?;
        let list = list.ok_or_else(|| BundleError::UnknownBuilder {
            client: version.to_string(),
            builder: builder.to_owned(),
        })?;
        let env = MarkerEnv { python_minor: target.python_minor, machine: target.arch.into() };
        let mut pins = Requirement::read_file(&list)?;
        pins.retain(|pin| pin.applies(&env));
        Ok(pins)
    }

    /// Brings all wheels here, a few at a time; the first failure is told.
    fn fetch_all(
        &self,
        pins: &[Requirement],
        target: &Target,
        talk: Talk<'_>,
    ) -> Result<Vec<LocalWheel>, BundleError> {
        let next = AtomicUsize::new(0);
        let found: Mutex<Vec<(usize, Result<LocalWheel, BundleError>)>> = Mutex::default();
        std::thread::scope(|scope| {
            for _ in 0..FETCHES_MAX.min(pins.len()) {
                scope.spawn(|| {
                    while let Some(pin) = pins.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let wheel = self.inner.wheels.any(pin, target, talk);
                        if wheel.is_err() {
                            next.store(pins.len(), Ordering::Relaxed);
                        }
                        let place = pins.iter().position(|p| std::ptr::eq(p, pin)).unwrap_or_default();
                        found.lock().unwrap_or_else(PoisonError::into_inner).push((place, wheel));
                    }
                });
            }
        });
        let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        found.sort_by_key(|(place, _)| *place);
        found.into_iter().map(|(_, wheel)| wheel).collect()
    }
}

/// Whether images of this builder version need the bundle; an error where it is not one's name.
fn needs_bundle(builder: &str) -> Result<bool, BundleError> {
    if builder == "PREVIEW" {
        return Ok(true);
    }
    let parts: Vec<&str> = builder.split('.').collect();
    let is_number = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if parts.len() != 2 || !parts.iter().all(is_number) || parts[0].len() != 4 || parts[1].len() != 2 {
        return Err(BundleError::Builder(builder.chars().take(40).collect()));
    }
    // Year and month of fixed width compare as texts do.
    Ok(builder > LAST_BUILDER_WITHOUT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builder_versions() {
        for (builder, wanted) in
            [("2023.12", false), ("2024.10", false), ("2025.06", true), ("2026.10", true), ("PREVIEW", true)]
        {
            assert_eq!(needs_bundle(builder).unwrap(), wanted, "{builder}");
        }
        for bad in ["", "2025", "2025.6", "../2025.06", "preview", "2025.06/x"] {
            assert!(needs_bundle(bad).is_err(), "{bad}");
        }
    }
}
