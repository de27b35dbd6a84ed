//! The machine that a rank runs on, by which ranks tell who shares processors, memory and GPUs with them.

/// Its name; ranks with equal names are on one host.
pub fn name() -> String {
    nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned()
}
