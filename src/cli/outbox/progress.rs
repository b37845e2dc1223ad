//! How far it is: a bar on standard error, if that is a terminal and nothing else is written there.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// The bar. Gone from the screen when it is dropped.
#[derive(Debug)]
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// `result_on_terminal`: the result itself goes to the terminal, so no bar is drawn over it.
    pub(super) fn new(unit: &str, result_on_terminal: bool) -> Self {
        let shown = std::io::stderr().is_terminal() && !result_on_terminal;
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        let template = format!("{{bar:30}} {{percent:>3}} % of {{human_len}} {unit}, {{eta}} left");
        bar.set_style(ProgressStyle::with_template(&template).expect("the template is a constant"));
        Self(bar)
    }

    pub(super) fn set(&self, done: u64, of: u64) {
        self.0.set_length(of);
        self.0.set_position(done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
