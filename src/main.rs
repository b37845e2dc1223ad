//! The program: what happens at start, in order. Everything else is in the library.

use std::process::ExitCode;

use fieldpost::cli::{self, Arguments};

fn main() -> ExitCode {
    fieldpost::memory::keep_large_blocks_apart();
    let arguments = match Arguments::from_command_line() {
        Ok(arguments) => arguments,
        Err(told) => return told.into(),
    };
    cli::forbid_core_dumps();
    cli::choose_cryptography();
    cli::run(arguments).unwrap_or_else(|failure| failure.tell()).into()
}
