//! What a definition asks for, in the words in which its author wrote it. Pure.

use crate::definition::Definition;
use evoke_core::{AppId, DefinitionId, FunctionId};
use evoke_proto::api;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Names of volumes, secrets and the like, by id.
pub(super) type Names = BTreeMap<String, String>;

/// The settings of a function by name; what is not set is not in it, but for what has a default that people count on.
pub(super) fn settings_of(definition: &Definition, names: &Names) -> BTreeMap<String, String> {
    let mut settings = Settings { found: BTreeMap::new(), names };
    settings.resources(definition);
    settings.running(definition);
    settings.autoscaler(&definition.function);
    settings.mounts(&definition.function);
    settings.placement(&definition.function);
    settings.interface(&definition.function);
    settings.found
}

/// A schedule as it is written.
fn schedule_text(schedule: &api::Schedule) -> Option<String> {
    use api::schedule::ScheduleOneof;
    Some(match schedule.schedule_oneof.as_ref()? {
        ScheduleOneof::Cron(cron) if cron.timezone.is_empty() => format!("Cron('{}')", cron.cron_string),
        ScheduleOneof::Cron(cron) => format!("Cron('{}', timezone='{}')", cron.cron_string, cron.timezone),
        ScheduleOneof::Period(period) => {
            let whole = [
                ("years", period.years),
                ("months", period.months),
                ("weeks", period.weeks),
                ("days", period.days),
                ("hours", period.hours),
                ("minutes", period.minutes),
            ];
            let mut parts: Vec<String> =
                whole.iter().filter(|(_, n)| *n != 0).map(|(unit, n)| format!("{unit}={n}")).collect();
            if period.seconds != 0.0 {
                parts.push(format!("seconds={}", period.seconds));
            }
            format!("Period({})", parts.join(", "))
        }
    })
}

struct Settings<'a> {
    found: BTreeMap<String, String>,
    names: &'a Names,
}

impl Settings<'_> {
    fn set(&mut self, name: impl Into<String>, value: impl ToString) {
        self.found.insert(name.into(), value.to_string());
    }

    /// Sets what is not zero, as protocol fields are that nobody set.
    fn number(&mut self, name: &str, value: impl Into<u64>, unit: &str) {
        let value = value.into();
        if value > 0 {
            self.set(name, format!("{value}{unit}"));
        }
    }

    fn flag(&mut self, name: &str, set: bool) {
        if set {
            self.set(name, "yes");
        }
    }

    fn text(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.set(name, value);
        }
    }

    fn name(&self, id: &str) -> String {
        self.names.get(id).cloned().unwrap_or_else(|| id.to_owned())
    }

    fn resources(&mut self, definition: &Definition) {
        let asked = definition.function.resources.clone().unwrap_or_default();
        let reserved = definition.resources();
        self.set("cpu", up_to(cores(reserved.milli_cpu), asked.milli_cpu_max, cores));
        self.set(
            "memory",
            up_to(format!("{} MiB", reserved.memory_mib), asked.memory_mb_max, |max| format!("{max} MiB")),
        );
        let gpus = definition.gpus();
        let one = |gpu: &api::GpuConfig| match gpu.count {
            1 => gpu.gpu_type.clone(),
            count => format!("{}:{count}", gpu.gpu_type),
        };
        self.text("gpu", &gpus.iter().map(one).collect::<Vec<_>>().join(" or "));
        self.number("ephemeral_disk", asked.ephemeral_disk_mb, " MiB");
    }

    fn running(&mut self, definition: &Definition) {
        let function = &definition.function;
        // Whose it is does not show in what it asks for.
        let (app, id) = (AppId::from_bits(0), FunctionId::from_bits(0));
        let conf = definition.conf(id, app, DefinitionId::from_bits(0), 0);
        self.set("timeout", format!("{} s", conf.timeout_ms / 1000));
        if conf.startup_timeout_ms != conf.timeout_ms {
            self.set("startup_timeout", format!("{} s", conf.startup_timeout_ms / 1000));
        }
        if let Some(policy) = function.retry_policy.filter(|policy| policy.retries > 0) {
            self.set(
                "retries",
                format!(
                    "{} (first delay {} ms, times {}, at most {} ms)",
                    policy.retries, policy.initial_delay_ms, policy.backoff_coefficient, policy.max_delay_ms
                ),
            );
        }
        if function.max_concurrent_inputs > 1 {
            self.set("concurrent.max_inputs", function.max_concurrent_inputs);
        }
        self.number("concurrent.target_inputs", function.target_concurrent_inputs, "");
        self.number("batched.max_batch_size", function.batch_max_size, "");
        self.number("batched.wait_ms", function.batch_linger_ms, "");
        self.number("max_inputs", function.max_inputs, "");
        self.flag("single_use_containers", function.single_use_containers);
        self.flag("enable_memory_snapshot", function.checkpointing_enabled);
        let schedule = function.schedule.as_ref().or(definition.data.schedule.as_ref());
        if let Some(text) = schedule.and_then(schedule_text) {
            self.set("schedule", text);
        }
    }

    fn autoscaler(&mut self, function: &api::Function) {
        let asked = function.autoscaler_settings.unwrap_or_default();
        let fields = [
            ("min_containers", asked.min_containers, function.warm_pool_size, ""),
            ("max_containers", asked.max_containers, function.concurrency_limit, ""),
            ("buffer_containers", asked.buffer_containers, function.experimental_buffer_containers, ""),
            ("scaledown_window", asked.scaledown_window, function.task_idle_timeout_secs, " s"),
        ];
        for (name, new, old, unit) in fields {
            self.number(name, new.unwrap_or(old), unit);
        }
    }

    fn mounts(&mut self, function: &api::Function) {
        let mut secrets: Vec<String> = function.secret_ids.iter().map(|id| self.name(id)).collect();
        secrets.sort();
        self.text("secrets", &secrets.join(", "));
        for mount in &function.volume_mounts {
            let part = mount.sub_path.as_ref().map(|path| format!(" part {path}")).unwrap_or_default();
            let mode = if mount.read_only { " (read-only)" } else { "" };
            let value = format!("volume {}{part}{mode}", self.name(&mount.volume_id));
            self.set(format!("volumes[{}]", mount.mount_path), value);
        }
        for mount in &function.shared_volume_mounts {
            let value = format!("network file system {}", self.name(&mount.shared_volume_id));
            self.set(format!("volumes[{}]", mount.mount_path), value);
        }
        for mount in &function.cloud_bucket_mounts {
            let prefix = mount.key_prefix.as_ref().map(|prefix| format!("/{prefix}")).unwrap_or_default();
            let mode = if mount.read_only { " (read-only)" } else { "" };
            let value = format!("bucket {}{prefix}{mode}", mount.bucket_name);
            self.set(format!("volumes[{}]", mount.mount_path), value);
        }
    }

    fn placement(&mut self, function: &api::Function) {
        if let Some(placement) = &function.scheduler_placement {
            self.text("region", &placement.regions.join(", "));
            self.flag("nonpreemptible", placement.nonpreemptible);
        }
        self.text("cloud", &function.cloud_provider_str);
        self.flag("block_network", function.block_network);
        if let Some(access) = &function.network_access {
            self.text("outbound_cidr_allowlist", &access.allowed_cidrs.join(", "));
            self.text("outbound_domain_allowlist", &access.allowed_domains.join(", "));
        }
    }

    fn interface(&mut self, function: &api::Function) {
        self.text("code in module", &function.module_name);
        let serialized = [&function.function_serialized, &function.class_serialized];
        if serialized.iter().any(|bytes| !bytes.is_empty()) {
            let mut hash = Sha256::new();
            serialized.iter().for_each(|bytes| hash.update(bytes));
            let digest = evoke_core::hex(&hash.finalize()[..6]);
            let bytes: usize = serialized.iter().map(|bytes| bytes.len()).sum();
            self.set("serialized code", format!("{bytes} bytes, {digest}"));
        }
        if let Some(web) = &function.webhook_config {
            self.web("web", web);
        }
        for (name, method) in &function.method_definitions {
            self.set(format!("method {name}"), "yes");
            if let Some(web) = &method.webhook_config {
                self.web(&format!("method {name}: web"), web);
            }
        }
        if let Some(http) = function.http_config.as_ref().filter(|_| function.is_server) {
            self.number("server.port", http.port, "");
            self.number("server.target_concurrency", http.target_concurrency, "");
            self.number("server.exit_grace_period", http.exit_grace_period, " s");
            self.flag("server.unauthenticated", http.unauthenticated);
        }
        let parameters = function.class_parameter_info.iter().flat_map(|info| &info.schema);
        let parameters: Vec<&str> = parameters.map(|parameter| parameter.name.as_str()).collect();
        self.text("parameters", &parameters.join(", "));
    }

    fn web(&mut self, name: &str, web: &api::WebhookConfig) {
        use api::WebhookType as Kind;
        let kind = match web.r#type() {
            Kind::Unspecified => return,
            Kind::AsgiApp => "asgi_app".to_owned(),
            Kind::WsgiApp => "wsgi_app".to_owned(),
            Kind::Function => format!("fastapi_endpoint, {}", web.method),
            Kind::WebServer => format!("web_server, port {}", web.web_server_port),
        };
        self.set(name, kind);
        self.text(&format!("{name} label"), &web.requested_suffix);
        self.flag(&format!("{name} requires_proxy_auth"), web.requires_proxy_auth);
        self.flag(&format!("{name} docs"), web.web_endpoint_docs);
        let domains: Vec<&str> = web.custom_domains.iter().map(|domain| domain.name.as_str()).collect();
        self.text(&format!("{name} custom_domains"), &domains.join(", "));
    }
}

fn cores(milli: u32) -> String {
    format!("{}", f64::from(milli) / 1000.0)
}

/// A reservation with its maximum, where there is one.
fn up_to(reserved: String, max: u32, text: impl Fn(u32) -> String) -> String {
    match max {
        0 => reserved,
        max => format!("{reserved}, at most {}", text(max)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::data_of;

    fn settings(function: api::Function) -> BTreeMap<String, String> {
        let data = data_of(&function);
        let names = Names::from([("vo-1".into(), "models".into()), ("st-1".into(), "hub".into())]);
        settings_of(&Definition { raw: Default::default(), function, data }, &names)
    }

    #[test]
    fn what_nobody_set_shows_only_the_defaults_that_people_count_on() {
        let found = settings(api::Function::default());
        let expected = [("cpu", "0.125"), ("memory", "128 MiB"), ("timeout", "300 s")];
        assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    }

    #[test]
    fn settings_are_told_in_their_authors_words() {
        let found = settings(api::Function {
            timeout_secs: 60,
            startup_timeout_secs: 90,
            secret_ids: vec!["st-1".into(), "st-2".into()],
            volume_mounts: vec![api::VolumeMount {
                volume_id: "vo-1".into(),
                mount_path: "/m".into(),
                read_only: true,
                ..Default::default()
            }],
            resources: Some(api::Resources {
                milli_cpu: 1500,
                milli_cpu_max: 2000,
                memory_mb: 256,
                gpu_config: Some(api::GpuConfig { count: 2, gpu_type: "H100".into(), ..Default::default() }),
                ..Default::default()
            }),
            autoscaler_settings: Some(api::AutoscalerSettings {
                min_containers: Some(1),
                ..Default::default()
            }),
            retry_policy: Some(api::FunctionRetryPolicy {
                retries: 3,
                backoff_coefficient: 2.0,
                initial_delay_ms: 1000,
                max_delay_ms: 60_000,
            }),
            schedule: Some(api::Schedule {
                schedule_oneof: Some(api::schedule::ScheduleOneof::Cron(api::schedule::Cron {
                    cron_string: "0 9 * * *".into(),
                    timezone: "UTC".into(),
                })),
            }),
            ..Default::default()
        });
        for (name, value) in [
            ("cpu", "1.5, at most 2"),
            ("memory", "256 MiB"),
            ("gpu", "H100:2"),
            ("timeout", "60 s"),
            ("startup_timeout", "90 s"),
            ("min_containers", "1"),
            ("retries", "3 (first delay 1000 ms, times 2, at most 60000 ms)"),
            ("secrets", "hub, st-2"),
            ("volumes[/m]", "volume models (read-only)"),
            ("schedule", "Cron('0 9 * * *', timezone='UTC')"),
        ] {
            assert_eq!(found.get(name).map(String::as_str), Some(value), "{name} in {found:?}");
        }
    }
}
