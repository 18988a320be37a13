//! The binary `baton`.

use std::process::ExitCode;

fn main() -> ExitCode {
    baton::cli::main()
}
