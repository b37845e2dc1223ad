//! The command line: one file per subcommand. Results go to standard output, everything else to standard error.

mod check_config;
mod completions;
mod config;
mod demo;
mod exit;
mod outbox;
mod run;
mod simulate;
mod status;
mod version;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

pub use exit::{Exit, Failure};

use crate::config::load::{self, Origin};

/// What was asked for.
#[derive(Debug, Parser)]
#[command(
    name = "fieldpost",
    version,
    about = "Takes readings from serial lines and MQTT, keeps them on disk, and delivers them to Kafka exactly once",
    after_help = "Examples:
  fieldpost check-config                           is the configuration good? names every mistake
  fieldpost run                                    the daemon; systemd does this
  fieldpost status                                 what the daemon is doing
  fieldpost run --config ./fieldpost.toml --set agent.log=debug

Exit codes: 0 done, 1 failed, 2 usage, 69 a needed service or device is unavailable, 74 input/output error, \
75 try again (another instance holds the lock), 78 configuration.",
    disable_help_subcommand = true,
    max_term_width = 100
)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon
    Run(run::Run),
    /// Check the configuration and name every mistake in it
    CheckConfig(check_config::CheckConfig),
    /// Ask the running daemon what it is doing
    Status(status::StatusCommand),
    /// Look into the outbox on disk, and change it
    #[command(subcommand)]
    Outbox(outbox::OutboxCommand),
    /// Show the configuration in force
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Play the whole story here: brokers, devices, an outage, two kills, and a tally
    Demo(demo::Demo),
    /// Simulate devices, to try a broker or a configuration
    Simulate(simulate::Simulate),
    /// Print completions for a shell
    Completions(completions::Completions),
    /// Print the version
    Version(version::Version),
}

impl Arguments {
    /// Reads the arguments of this process. The error has been told already (help is one, with exit code 0).
    pub fn from_command_line() -> Result<Self, Exit> {
        Self::read(std::env::args_os())
    }

    fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, Exit> {
        Self::try_parse_from(arguments).map_err(|error| {
            // Nobody is left to tell when the terminal is gone.
            let _ = error.print();
            if error.use_stderr() { Exit::Usage } else { Exit::Done }
        })
    }
}

/// Does what was asked for.
pub fn run(arguments: Arguments) -> Result<Exit, Failure> {
    match arguments.command {
        Command::Run(command) => command.run(),
        Command::CheckConfig(command) => command.run(),
        Command::Status(command) => command.run(),
        Command::Outbox(command) => command.run(),
        Command::Config(command) => command.run(),
        Command::Demo(command) => command.run(),
        Command::Simulate(command) => command.run(),
        Command::Completions(command) => command.run(),
        Command::Version(command) => command.run(),
    }
}

/// Where the configuration is: arguments of every command that reads it.
#[derive(Debug, Clone, Args)]
struct ConfigArguments {
    /// Main file; `conf.d/*.toml` beside it is read after it
    #[arg(long, value_name = "FILE", default_value = load::DEFAULT_PATH)]
    config: PathBuf,
    /// Set one setting, over all files and variables; may be repeated
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
}

impl ConfigArguments {
    fn origin(self) -> Origin {
        Origin { path: self.config, set: self.set }
    }

    /// Loads it; warnings go to standard error.
    fn load(self) -> Result<load::Loaded, Failure> {
        load::load(&self.origin()).map_err(Failure::from)
    }
}

/// Memory holds passwords, and a core file may be sent to people who must not have them.
pub fn forbid_core_dumps() {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    let limited = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let marked = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    if let Err(error) = limited.and(marked) {
        tell(&format!("warning: core dumps cannot be forbidden: {error}"));
    }
}

/// rustls has two providers to choose from; every TLS connection of the process uses this one.
pub fn choose_cryptography() {
    // The error says that one is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// A line on standard error. A closed one is nobody's loss.
fn tell(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Text on standard output. A reader that went away (`| head`) has what it wanted.
fn show(text: &str) -> Result<(), Failure> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::InputOutput, format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Pretty JSON with a line end, and nothing in it that steers a terminal.
fn json(value: &impl serde::Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value).map(crate::outbox::look::harmless);
    text.map(|text| text + "\n").map_err(|error| Failure::new(Exit::Failed, format!("cannot write JSON: {error}")))
}
