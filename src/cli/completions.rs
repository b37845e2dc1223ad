//! `fieldpost completions`

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Arguments, Exit, Failure, show};

/// Print completions for a shell
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  fieldpost completions bash > /etc/bash_completion.d/fieldpost
  fieldpost completions zsh > /usr/local/share/zsh/site-functions/_fieldpost
  fieldpost completions fish > ~/.config/fish/completions/fieldpost.fish")]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut Arguments::command(), "fieldpost", &mut text);
        show(&String::from_utf8_lossy(&text))?;
        Ok(Exit::Done)
    }
}
