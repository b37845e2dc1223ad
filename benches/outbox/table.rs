//! The table: row, measured, demand, stretch, verdict.

use crate::child::Figures;

/// What a row is to reach: the demand, then the stretch.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Aim {
    AtLeast(f64, f64),
    AtMost(f64, f64),
}

impl Aim {
    fn verdict(self, measured: f64) -> &'static str {
        let (demand, stretch) = match self {
            Self::AtLeast(demand, stretch) => (measured >= demand, measured >= stretch),
            Self::AtMost(demand, stretch) => (measured <= demand, measured <= stretch),
        };
        match (demand, stretch) {
            (true, true) => "stretch",
            (true, false) => "good",
            // Also what is not a number.
            (false, _) => "SHORT",
        }
    }

    fn texts(self) -> [String; 2] {
        match self {
            Self::AtLeast(demand, stretch) => [format!(">= {demand}"), format!(">= {stretch}")],
            Self::AtMost(demand, stretch) => [format!("<= {demand}"), format!("<= {stretch}")],
        }
    }
}

struct Row {
    cells: [String; 5],
    beside: String,
}

/// Rows so far. Each is told when it is measured, the whole at the end.
pub(crate) struct Table {
    only: String,
    rows: Vec<Row>,
    notes: Vec<String>,
    short: usize,
}

impl Table {
    pub(crate) fn new(only: String) -> Self {
        Self { only, rows: Vec::new(), notes: Vec::new(), short: 0 }
    }

    /// Whether rows of this name are asked for.
    pub(crate) fn wants(&self, name: &str) -> bool {
        name.contains(&self.only)
    }

    pub(crate) fn add(&mut self, name: &str, measured: f64, unit: &str, aim: Aim, beside: &str) {
        let verdict = aim.verdict(measured);
        self.short += usize::from(verdict == "SHORT");
        let [demand, stretch] = aim.texts();
        let digits = if measured >= 10.0 { 1 } else { 3 };
        let measured = format!("{measured:.digits$} {unit}").trim_end().to_owned();
        eprintln!("{name}: {measured} ({beside})");
        let cells = [name.to_owned(), measured, demand, stretch, verdict.to_owned()];
        self.rows.push(Row { cells, beside: beside.to_owned() });
    }

    /// A figure that nothing is demanded of.
    pub(crate) fn note(&mut self, name: &str, text: &str) {
        eprintln!("{name}: {text}");
        self.notes.push(format!("{name}: {text}"));
    }

    pub(crate) fn print(&self) {
        let heads = ["row", "measured", "demand", "stretch", "verdict"].map(str::to_owned);
        let all: Vec<&[String; 5]> = std::iter::once(&heads).chain(self.rows.iter().map(|row| &row.cells)).collect();
        let widths: Vec<usize> =
            (0..5).map(|at| all.iter().map(|cells| cells[at].chars().count()).max().unwrap_or(0)).collect();
        let besides = std::iter::once("").chain(self.rows.iter().map(|row| row.beside.as_str()));
        println!();
        for (cells, beside) in all.iter().zip(besides) {
            let padded: Vec<String> =
                cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            println!("{}", format!("| {} | {beside}", padded.join(" | ")).trim_end());
        }
        println!();
        self.notes.iter().for_each(|note| println!("{note}"));
        println!("load at the end: {}", crate::machine::load());
        println!("result: rows={} short={}", self.rows.len(), self.short);
    }
}

pub(crate) fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

pub(crate) fn median_of(runs: &[Figures], figure: &str) -> f64 {
    median(&runs.iter().map(|run| run.get(figure).copied().unwrap_or(f64::NAN)).collect::<Vec<_>>())
}
