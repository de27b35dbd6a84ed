//! `ilm-worker`: trains and evaluates insertion language models.

fn main() {
    std::process::exit(worker::run(std::env::args_os().collect()));
}
