//! Attackers: each kind with its workers, and the count of what they did and what came of it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, ensure};
use harness::{node::Node, witnesses::Notices};
use rand::seq::IteratorRandom;
use tokio::task::JoinSet;

use crate::door::Door;

/// Between two attempts of one attacker.
const PAUSE_MS: std::ops::Range<u64> = 30..90;

/// What is attacked.
pub struct Target {
    /// Where people come in.
    pub envoy: Door,
    pub admin: Door,
    pub sidecar: Door,
    /// The sidecar's Unix socket.
    pub local: Door,
    /// The ORM cache's.
    pub cache: Door,
    /// The names of the nodes, and where they serve.
    pub nodes: Vec<(String, String)>,
    pub notices: Arc<Mutex<Notices>>,
}

impl Target {
    /// The ids that the session of somebody who is at work has had: the newest last.
    pub fn somebody(&self) -> Vec<String> {
        let notices = self.notices.lock().expect("no panic");
        notices.alive.values().choose(&mut rand::rng()).cloned().unwrap_or_default()
    }

    /// Whether the session that had these ids is somebody's still.
    pub fn is_at_work(&self, ids: &[String]) -> bool {
        let notices = self.notices.lock().expect("no panic");
        notices.alive.values().any(|now| now.first() == ids.first())
    }

    pub fn nodes(nodes: &[Node]) -> Vec<(String, String)> {
        nodes.iter().map(|node| (node.id.clone(), node.endpoint.http.to_string())).collect()
    }
}

/// What one kind of attack did.
#[derive(Default)]
struct Tally {
    /// Connections or requests that were begun.
    made: AtomicU64,
    /// Those that came to an end of their own, such as an answer.
    done: AtomicU64,
    /// Those that the other side refused or ended.
    ended: AtomicU64,
    harm: Mutex<BTreeMap<String, usize>>,
}

/// One of many who do the same.
#[derive(Clone)]
pub struct Attacker {
    pub door: Door,
    pub target: Arc<Target>,
    tally: Arc<Tally>,
}

impl Attacker {
    /// It had an effect that it must not have.
    pub fn harm(&self, what: impl Into<String>) {
        *self.tally.harm.lock().expect("no panic").entry(what.into()).or_default() += 1;
    }
}

struct Kind {
    name: &'static str,
    workers: usize,
    tally: Arc<Tally>,
}

/// All of them.
pub struct Attackers {
    target: Arc<Target>,
    /// Part of the name of those who come; none: all.
    only: Option<String>,
    kinds: Vec<Kind>,
    tasks: JoinSet<()>,
}

impl Attackers {
    pub fn new(target: Arc<Target>) -> Self {
        let only = std::env::var("MOORING_ATTACK_ONLY").ok();
        Self { target, only, kinds: Vec::new(), tasks: JoinSet::new() }
    }

    /// Has `workers` do one thing at a door again and again.
    pub fn begin<Once, Done>(&mut self, name: &'static str, door: &Door, workers: usize, once: Once)
    where
        Once: Fn(Attacker) -> Done + Clone + Send + 'static,
        Done: Future<Output = Result<()>> + Send + 'static,
    {
        if self.only.as_ref().is_some_and(|only| !name.contains(only)) {
            return;
        }
        let tally = Arc::<Tally>::default();
        let attacker =
            Attacker { door: door.clone(), target: Arc::clone(&self.target), tally: Arc::clone(&tally) };
        for _ in 0..workers {
            let (attacker, once) = (attacker.clone(), once.clone());
            self.tasks.spawn(async move {
                loop {
                    attacker.tally.made.fetch_add(1, Ordering::Relaxed);
                    let count = match once(attacker.clone()).await {
                        Ok(()) => &attacker.tally.done,
                        Err(_) => &attacker.tally.ended,
                    };
                    count.fetch_add(1, Ordering::Relaxed);
                    let pause = rand::random_range(PAUSE_MS);
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                }
            });
        }
        self.kinds.push(Kind { name, workers, tally });
    }

    /// Ends them, tells what they did, and returns what they must not be able to do.
    ///
    /// # Errors
    /// If an attack did not take place.
    pub async fn end(mut self) -> Result<Vec<String>> {
        // Counted before: whose connection is open still has it.
        let rows: Vec<Row> = self.kinds.iter().map(Row::of).collect();
        self.tasks.shutdown().await;
        println!("  {:<46}{:>9}{:>9}{:>9}{:>9}", "attack", "made", "answered", "ended", "open");
        for row in &rows {
            println!("  {:<46}{:>9}{:>9}{:>9}{:>9}", row.name, row.made, row.done, row.ended, row.open());
        }
        for row in &rows {
            ensure!(row.made >= row.workers, "{}: only {} of {} began", row.name, row.made, row.workers);
        }
        let harm = rows.iter().flat_map(|row| {
            row.harm.iter().map(|(what, times)| format!("{}: {what}, {times} times", row.name))
        });
        Ok(harm.collect())
    }
}

struct Row {
    name: &'static str,
    workers: u64,
    made: u64,
    done: u64,
    ended: u64,
    harm: BTreeMap<String, usize>,
}

impl Row {
    fn of(kind: &Kind) -> Self {
        let [done, ended, made] = [&kind.tally.done, &kind.tally.ended, &kind.tally.made]
            .map(|count| count.load(Ordering::Relaxed));
        let harm = kind.tally.harm.lock().expect("no panic").clone();
        Self { name: kind.name, workers: kind.workers as u64, made, done, ended, harm }
    }

    fn open(&self) -> u64 {
        self.made.saturating_sub(self.done + self.ended)
    }
}
