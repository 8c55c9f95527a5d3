//! What a story tells: steps with what was expected and seen, as a table or as JSON.

use std::io::{IsTerminal, stdout};

use anyhow::Result;
use console::{Term, style};
use serde::Serialize;

/// One step of a story.
#[derive(Serialize)]
pub struct Step {
    /// What was done.
    pub step: &'static str,
    /// What was seen.
    pub seen: String,
    /// Whether that is what was promised.
    pub held: bool,
}

/// A story that is told while it happens.
pub struct Story {
    json: bool,
    steps: Vec<Step>,
}

impl Story {
    /// Begins a story; `json` keeps it silent until its end.
    pub fn begin(json: bool) -> Self {
        Self { json, steps: vec![] }
    }

    /// Tells what is going on.
    pub fn note(&self, text: &str) {
        if !self.json {
            println!("{}", style(text).dim());
        }
    }

    /// Tells a step: what was seen, or why nothing could be.
    pub fn tell(&mut self, step: &'static str, outcome: Result<(bool, String)>) {
        let (held, seen) = outcome.unwrap_or_else(|error| (false, format!("{error:#}")));
        if !self.json {
            let mark = if held { style("✔").green() } else { style("✘").red() };
            let width = if stdout().is_terminal() { usize::from(Term::stdout().size().1) } else { 200 };
            let step = console::pad_str(step, 46, console::Alignment::Left, None);
            println!(" {mark} {}", console::truncate_str(&format!("{step}  {seen}"), width.max(60) - 3, "…"));
        }
        self.steps.push(Step { step, seen, held });
    }

    /// Whether every step held.
    pub fn held(&self) -> bool {
        self.steps.iter().all(|step| step.held)
    }

    /// Prints the facts, if they were asked for.
    pub fn print_json(&self, extra: &serde_json::Value) -> Result<()> {
        if self.json {
            let facts = serde_json::json!({"held": self.held(), "steps": self.steps, "urls": extra});
            println!("{}", serde_json::to_string_pretty(&facts)?);
        }
        Ok(())
    }
}
