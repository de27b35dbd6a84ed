//! What a person and a plotting tool see of a run.

mod banner;
mod progress;
mod record;

pub use self::banner::Banner;
pub use self::progress::Progress;
pub use self::record::StepRecord;

use tracing_subscriber::EnvFilter;

/// Tells a person of something that is odd but no error.
pub fn warn(message: &str) {
    eprintln!("warning: {message}");
}

/// Sends diagnostics to standard error: warnings and more, or what the variable `RUST_LOG` asks for.
pub fn init_logging() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    let subscriber =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    // Fails only if a test of this process has installed one already.
    let _ = subscriber.try_init();
}
