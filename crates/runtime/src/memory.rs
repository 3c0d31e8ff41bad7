//! Memory that this process has freed and its C library still holds.

/// Gives free memory back to the machine. The C library keeps it for itself otherwise, hundreds of MiB after an
/// image build. Takes milliseconds, during which other threads cannot allocate.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: malloc_trim may be called at any time from any thread; it touches free memory only.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}
