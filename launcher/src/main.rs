//! The binary `ilm-launch`; everything is in the library so that it can be tested.

fn main() -> std::process::ExitCode {
    launcher::main()
}
