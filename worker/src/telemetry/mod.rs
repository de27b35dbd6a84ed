//! What a person and a plotting tool see of a run.

mod banner;
mod job_progress;
mod progress;
mod record;

pub use self::banner::Banner;
pub use self::job_progress::JobProgress;
pub use self::progress::Progress;
pub use self::record::StepRecord;

use std::fmt;
use std::io::Write;

use data_pipeline::WARNINGS_OF_A_SET;
use tracing_subscriber::EnvFilter;

/// Writes a line for people to standard output, as `println!` does, but a reader that has gone away (`| head`) is no reason to
/// end: what matters is in files.
#[macro_export]
macro_rules! say {
    ($($argument:tt)*) => { $crate::telemetry::write_line(std::io::stdout().lock(), format_args!($($argument)*)) };
}

/// As [`say!`] to standard error.
#[macro_export]
macro_rules! complain {
    ($($argument:tt)*) => { $crate::telemetry::write_line(std::io::stderr().lock(), format_args!($($argument)*)) };
}

/// Writes a line if anybody reads it: in one piece, as other ranks and their launcher write to the same place.
pub fn write_line(mut out: impl Write, line: fmt::Arguments<'_>) {
    let _ = out.write_all(format!("{line}\n").as_bytes()).and_then(|()| out.flush());
}

/// Tells a person of something that is odd but no error.
pub fn warn(message: &str) {
    complain!("warning: {message}");
}

/// Sends diagnostics to standard error: warnings and more, or what the variable `RUST_LOG` asks for. What a rank would say of its data
/// in the same words as all others is left to one, unless the variable asks for that too.
pub fn init_logging(speaks_for_all: bool) {
    let usual = if speaks_for_all { "warn".to_owned() } else { format!("warn,{WARNINGS_OF_A_SET}=off") };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(usual));
    let subscriber =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    // Fails only if a test of this process has installed one already.
    let _ = subscriber.try_init();
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// What each call has written.
    #[derive(Default)]
    struct Calls(Vec<String>);

    impl Write for &mut Calls {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.push(String::from_utf8_lossy(bytes).into_owned());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_is_written_in_one_piece() {
        let mut calls = Calls::default();
        write_line(&mut calls, format_args!("error: rank {} of {} is lost", 1, 2));
        assert_eq!(calls.0, ["error: rank 1 of 2 is lost\n"]);
    }
}
