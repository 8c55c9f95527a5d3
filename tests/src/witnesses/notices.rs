//! What witnesses noticed.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::browser::Answer;

/// What went wrong for somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// A GET without a good answer.
    Get,
    /// A session that is no more, although nobody ended it.
    Logout,
    /// A session that was of use to somebody after it was logged out.
    Stolen,
}

/// Which session it happened to.
#[derive(Clone, Debug)]
pub struct Session {
    /// When it began, or ended if it was logged out.
    pub since: Instant,
    /// The node that answered then.
    pub node: String,
}

impl Session {
    /// It begins, or ends, with this answer.
    pub fn now(answer: Option<&Answer>) -> Self {
        let node = answer.map(|answer| answer.node().to_owned()).unwrap_or_default();
        Self { since: Instant::now(), node }
    }
}

/// Something that must not happen, and what may explain it.
#[derive(Debug)]
pub struct Trouble {
    pub wrong: Wrong,
    /// The node that answered, if one did.
    pub node: String,
    pub status: Option<u16>,
    pub session: Session,
    pub when: Instant,
}

impl Trouble {
    pub fn new(wrong: Wrong, answer: Option<&Answer>, session: Session) -> Self {
        let node = answer.map(|answer| answer.node().to_owned()).unwrap_or_default();
        Self { wrong, node, status: answer.map(|answer| answer.status), session, when: Instant::now() }
    }
}

/// What all of them noticed.
#[derive(Default)]
pub struct Notices {
    pub requests: usize,
    pub troubles: Vec<Trouble>,
    /// POSTs without a good answer: they may have run, so nobody repeats them.
    pub failed_posts: usize,
    pub wrong_user: usize,
    /// Times that somebody was shown the login page, and was logged in again at the next attempt. Odoo itself
    /// does so where two requests of a rotated session meet its clean-up.
    pub detours: usize,
    /// Those at another node than the one that had served before, which is never Odoo's doing.
    pub strays: usize,
    /// Times that another node served than the one before, in the same session.
    pub moves: usize,
    gaps: Vec<Duration>,
    pub sockets: Sockets,
    /// Session ids that were logged out, and when.
    pub dead: Vec<(String, Session)>,
    /// Who is logged in, with the ids that their session has had: the newest last.
    pub alive: BTreeMap<String, Vec<String>>,
    /// What went wrong, to be told.
    pub stories: Vec<String>,
}

/// What became of websockets that are held open.
#[derive(Default)]
pub struct Sockets {
    pub echoes: usize,
    pub breaks: usize,
    /// Those that were not open again at the end.
    pub closed: usize,
    /// The longest that an answer took.
    pub slowest: Duration,
    /// How long it took until one that broke was open again.
    again: Vec<Duration>,
}

impl Notices {
    pub fn story(&mut self, text: String) {
        if self.stories.len() < 12 {
            self.stories.push(text);
        }
    }

    /// Somebody's session has this id now; none: they have no session.
    pub(super) fn uses(&mut self, login: &str, sid: Option<&str>) {
        let Some(sid) = sid else {
            self.alive.remove(login);
            return;
        };
        let ids = self.alive.entry(login.to_owned()).or_default();
        if ids.last().is_none_or(|last| last != sid) {
            ids.push(sid.to_owned());
        }
    }

    /// How often that went wrong.
    pub fn count(&self, wrong: Wrong) -> usize {
        self.troubles.iter().filter(|trouble| trouble.wrong == wrong).count()
    }

    /// A GET took this long.
    pub fn gap(&mut self, time: Duration) {
        self.gaps.push(time);
    }

    /// How long GETs took since this was asked last.
    pub fn take_gaps(&mut self) -> Vec<Duration> {
        std::mem::take(&mut self.gaps)
    }

    /// The row of a table.
    pub fn cells(&mut self) -> [String; 8] {
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| at(&mut self.gaps, share));
        let counts = [
            self.requests,
            self.count(Wrong::Get),
            self.failed_posts,
            self.wrong_user,
            self.detours,
            self.count(Wrong::Logout),
        ];
        let [requests, gets, posts, wrong, detours, logouts] = counts.map(|count| count.to_string());
        let gaps = format!("{p50:.1?} / {p99:.1?} / {max:.1?}");
        [requests, gets, posts, wrong, detours, logouts, gaps, self.sockets.cell()]
    }
}

impl Sockets {
    /// One that broke is open again.
    pub fn open_again(&mut self, after: Duration) {
        self.again.push(after);
    }

    fn cell(&mut self) -> String {
        let [p50, max] = [0.5, 1.0].map(|share| at(&mut self.again, share));
        let again = match self.again.len() {
            0 => String::new(),
            again => format!(", {again} open again in {p50:.1?} / {max:.1?}"),
        };
        format!("{} broke{again}; slowest echo {:.1?}", self.breaks, self.slowest)
    }
}

/// What a share of the times are at most.
pub fn at(times: &mut [Duration], share: f64) -> Duration {
    times.sort_unstable();
    let last = times.len().saturating_sub(1);
    times.get((last as f64 * share) as usize).copied().unwrap_or_default()
}
