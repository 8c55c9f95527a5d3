//! A bad night: something goes wrong while people work, behind Mooring and at the same time behind nginx
//! with `ip_hash`.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, ensure};
use harness::{
    browser::{self, Browser, http1},
    witnesses::{Habits, Notices, Trouble, Witnesses, Wrong, lost, risen},
};
use tokio::time::sleep;

use crate::town::{Recipe, Town};

/// How many people work behind each.
fn people() -> usize {
    std::env::var("MOORING_PEOPLE").ok().and_then(|text| text.parse().ok()).unwrap_or(60)
}

/// Two nights at once would measure each other.
pub static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

const WARM_UP: Duration = Duration::from_secs(3);
/// How often somebody tries what others logged out of.
const STEAL: Duration = Duration::from_millis(20);

/// What nobody could have prevented, and why.
pub struct Excuse {
    pub why: &'static str,
    pub holds: Box<dyn Fn(&Trouble) -> bool>,
}

/// What a night is like.
#[derive(Clone, Default)]
pub struct Night {
    pub name: &'static str,
    /// Which Odoo: 16, 18 or 19.
    pub profile: u32,
    /// How far the nodes' clocks are ahead, in seconds.
    pub clocks: Vec<i64>,
    /// Whether the sessions of the first node are on a small disk of their own.
    pub small_disk: bool,
    /// Whether the second node is on a host of its own.
    pub apart: bool,
}

impl Night {
    pub fn new(name: &'static str, profile: u32) -> Self {
        Self { name, profile, ..Self::default() }
    }

    /// Arguments of all nodes.
    pub fn standin_args(&self) -> [&'static str; 4] {
        // Faster than Odoo's three hours and two minutes, unless clocks differ by more than that.
        let quick = ["--rotation-secs", "4", "--rotation-grace-secs", "4"];
        let slow = ["--rotation-secs", "20", "--rotation-grace-secs", "120"];
        if self.clocks.is_empty() { quick } else { slow }
    }

    /// What `happens` to Mooring's servers, and the same to nginx's; with the excuse for what it breaks.
    pub async fn pass(
        self,
        happens: impl AsyncFnOnce(&mut Town, &mut Recipe, &Mutex<Notices>) -> Result<Option<Excuse>>,
    ) -> Result<Notices> {
        let _alone = ONE_AT_A_TIME.lock().await;
        let mut town = Town::start(&self).await?;
        let mut recipe = Recipe::start(&self).await?;
        let connections = http1();
        let habits = Habits { people: people(), settled: 0, seed: rand::random() };
        let ours = Witnesses::start(&connections, town.stack.address, habits).await?;
        let theirs = Witnesses::start(&connections, recipe.address, habits).await?;
        let caught = Arc::<AtomicBool>::default();
        let thief = tokio::spawn(steal(
            town.stack.browser(&connections),
            Arc::clone(&ours.notices),
            Arc::clone(&caught),
        ));
        sleep(WARM_UP).await;
        let excuse = happens(&mut town, &mut recipe, &ours.notices).await?;
        caught.store(true, Ordering::Relaxed);
        thief.await?;
        let (mut ours, mut theirs) = (ours.end().await?, theirs.end().await?);
        // What is under way ends.
        sleep(Duration::from_secs(2)).await;
        let running = town.stack.nodes.iter().filter(|node| node.process.is_some());
        let risen = risen(&ours, running.map(|node| node.endpoint.http)).await?;
        let lost = lost(&ours, &connections, town.stack.address).await?;
        println!("{} (Odoo {}, {} people behind each)", self.name, self.profile, people());
        print_table([("Mooring", &mut ours), ("nginx ip_hash", &mut theirs)]);
        let metrics = browser::get(town.stack.sidecar_address, "/metrics").await?.text();
        let unsettled =
            metrics.lines().find_map(|line| line.strip_prefix("mooring_entries_unsettled_total "));
        println!(
            "  {} logged out by themselves, {risen} of them valid again at the end, {} times before; {lost} of {} lost at the end; {} logins or logouts answered before their copies were safe",
            ours.dead.len(),
            ours.count(Wrong::Stolen),
            ours.alive.len(),
            unsettled.unwrap_or("no")
        );
        for story in ours.stories.iter().chain(&town.complaints()) {
            println!("    {story}");
        }
        if let Some(excuse) = &excuse {
            let all = ours.troubles.len();
            ours.troubles.retain(|trouble| !(excuse.holds)(trouble));
            println!("  {} of {all} troubles: {}", all - ours.troubles.len(), excuse.why);
        }
        ensure!(ours.wrong_user == 0, "an answer as another user");
        let stolen = ours.count(Wrong::Stolen);
        ensure!(risen == 0 && stolen == 0, "{risen} sessions that were logged out are valid, {stolen} were");
        let (gets, logouts) = (ours.count(Wrong::Get), ours.count(Wrong::Logout));
        ensure!(gets == 0, "{gets} GETs failed");
        ensure!(logouts == 0 && lost == 0, "{logouts} people were logged out, {lost} at the end");
        ensure!(ours.sockets.closed == 0, "{} websockets are not open again", ours.sockets.closed);
        ensure!(ours.requests > people().min(60) * 10, "only {} requests", ours.requests);
        ensure!(ours.sockets.echoes > people(), "only {} echoes of websockets", ours.sockets.echoes);
        Ok(ours)
    }
}

fn print_table(rows: [(&str, &mut Notices); 2]) {
    let row = |who: &str, cells: [String; 8]| {
        let [requests, gets, posts, wrong, detours, logouts, gaps, sockets] = cells;
        println!(
            "  {who:<14}{requests:>9}{gets:>12}{posts:>13}{wrong:>11}{detours:>8}{logouts:>8}   {gaps:<25}  {sockets}"
        );
    };
    let head = ["requests", "failed GETs", "failed POSTs", "wrong user", "detours", "logouts"];
    let tail = ["gap p50/p99/max", "websockets, again p50/max"];
    let mut titles = head.iter().chain(&tail).map(|title| (*title).to_owned());
    row("", std::array::from_fn(|_| titles.next().unwrap_or_default()));
    for (who, notices) in rows {
        row(who, notices.cells());
    }
}

/// Somebody has the cookies of all who logged out, and tries them.
async fn steal(mut browser: Browser, notices: Arc<Mutex<Notices>>, caught: Arc<AtomicBool>) {
    while !caught.load(Ordering::Relaxed) {
        sleep(STEAL).await;
        let dead = {
            let notices = notices.lock().expect("no panic");
            let number = rand::random_range(0..notices.dead.len().max(1));
            notices.dead.get(number).cloned()
        };
        let Some((sid, session)) = dead else { continue };
        browser.sid = Some(sid);
        // Who gets no answer has nothing.
        let Ok(answer) = browser.get("/odoo").await else { continue };
        if !answer.login().is_empty() {
            let mut notices = notices.lock().expect("no panic");
            notices.troubles.push(Trouble::new(Wrong::Stolen, Some(&answer), session));
            notices.story(format!("a session of {} is valid again at {}", answer.login(), answer.node()));
        }
    }
}
