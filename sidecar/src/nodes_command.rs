//! `mooring nodes`: the nodes as a table for people or as JSON for machines.

use std::{io::IsTerminal, time::Duration};

use affinity::wire::{CarriedReport, LeaseHolder, NodeReport, NodesReply, StoreReport};
use comfy_table::{Cell, CellAlignment, Color, Table, presets};

use crate::{
    asking::{AskError, Sidecar},
    cli::Nodes,
};

/// How often a live table is made anew.
const EVERY: Duration = Duration::from_secs(1);
/// Clears a terminal, and begins at its top.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Prints the nodes: once, or until it is interrupted.
///
/// # Errors
/// If no sidecar answers.
#[allow(clippy::print_stdout)]
pub(crate) async fn run(options: Nodes) -> Result<(), AskError> {
    let sidecar = Sidecar::new(&options.asked)?;
    if !options.watch {
        let reply: NodesReply = sidecar.get("/v1/nodes").await?;
        if options.json {
            println!("{}", serde_json::to_string(&reply).unwrap_or_default());
        } else {
            println!("{}", text(&reply));
        }
        return Ok(());
    }
    let clear = if std::io::stdout().is_terminal() { CLEAR } else { "" };
    loop {
        // A sidecar that restarts is waited for: whoever watches does so because things happen.
        match sidecar.get::<NodesReply>("/v1/nodes").await {
            Ok(reply) => println!("{clear}{}", text(&reply)),
            Err(error @ AskError::NoSidecar(..)) => println!("{clear}{error}"),
            Err(error) => return Err(error),
        }
        tokio::time::sleep(EVERY).await;
    }
}

fn text(reply: &NodesReply) -> String {
    let mut text = table(&reply.nodes).to_string();
    if let Some(LeaseHolder { name, left_ms }) = &reply.cron {
        text += &format!("\nscheduled jobs run on {name} (its lease: {} s)", left_ms.div_ceil(1_000));
    }
    if let Some(StoreReport { problem, remedy }) = &reply.store {
        text += &format!("\n{problem}");
        text.extend(remedy.iter().map(|remedy| format!("\n{remedy}")));
    }
    for difference in &reply.differences {
        text += &format!("\nsidecars were told of different nodes: {difference}");
    }
    text
}

fn table(nodes: &[NodeReport]) -> Table {
    let total_sessions: u64 = nodes.iter().map(|node| node.sessions).sum();
    let total_weight: u64 = nodes.iter().map(|node| u64::from(node.weight)).sum();
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "node",
        "state",
        "sessions",
        "of fair share",
        "carried",
        "http",
        "gevent",
        "weight",
        "probe",
        "since",
    ]);
    for node in nodes {
        let color = match node.state {
            affinity::NodeState::Active => Color::Green,
            affinity::NodeState::Draining => Color::Yellow,
            affinity::NodeState::Down => Color::Red,
        };
        let state = match &node.problem {
            Some(problem) => format!("{}: {problem}", node.state),
            None => node.state.to_string(),
        };
        let fair = total_sessions as f64 * f64::from(node.weight) / total_weight.max(1) as f64;
        let share = Some(node.sessions)
            .filter(|_| fair > 0.0)
            .map(|own| format!("{:.0} %", own as f64 / fair * 100.0));
        let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".into());
        table.add_row([
            Cell::new(&node.id),
            Cell::new(state).fg(color),
            right(node.sessions.to_string()),
            right(or_dash(share)),
            right(match &node.carried {
                Some(report) => carried(report),
                // By a sidecar that does not say how it stands.
                None if node.carries => "yes".to_owned(),
                None => "–".to_owned(),
            }),
            Cell::new(&node.http),
            Cell::new(or_dash(node.gevent.clone())),
            right(node.weight.to_string()),
            right(or_dash(node.probe_ms.map(|ms| format!("{ms:.1} ms")))),
            right(since(node.since_seconds)),
        ]);
    }
    table
}

/// Sessions on the node's disk and in the store, and what is left to do.
fn carried(report: &CarriedReport) -> String {
    let mut text = report.sessions.to_string();
    if !report.complete {
        text += &format!(" ({} of {} looked at)", report.looked_at, report.of);
    } else if report.waiting > 0 {
        text += &format!(" ({} waiting)", report.waiting);
    }
    if report.left_alone > 0 {
        text += &format!(" ({} left alone)", report.left_alone);
    }
    text
}

fn since(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_says_what_is_wrong_and_what_is_unknown() {
        let json = r#"{"nodes":[
            {"id":"a","http":"127.0.0.1:1","gevent":"127.0.0.1:2","weight":3,"state":"active","sessions":3,"probe_ms":1.25,"since_seconds":5,"problem":null,"carried":{"sessions":7,"waiting":2,"looked_at":3,"of":9,"complete":false,"left_alone":5}},
            {"id":"b","http":"odoo:1","gevent":null,"weight":1,"state":"down","sessions":0,"probe_ms":null,"since_seconds":9000,"problem":"refused"}],
            "store":{"problem":"the store refuses what is needed: TIME","remedy":"+time"}}"#;
        let reply: NodesReply = serde_json::from_str(json).unwrap();
        let text = text(&reply);
        for part in [
            "active",
            "133 %",
            "1.2 ms",
            "7 (3 of 9 looked at) (5 left alone)",
            "5 s",
            "down: refused",
            "–",
            "2 h",
            "odoo:1",
            "refuses what is needed: TIME\n+time",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
