//! One per VM: reads the configuration, ticks, and follows the sidecar.
//!
//! One VM of an Envoy polls for all: whoever finds the poller's lease on the board run out takes it.
//! Every VM looks at the board on each tick and applies what is new there.

use std::{env, rc::Rc, time::Duration};

use affinity::wire::{self, Claim, ClaimReply, WatchQuery, WatchReply};

use crate::{
    board::Progress,
    config::Config,
    host,
    metrics::{PollAge, count},
    router::Router,
    state::State,
};

const TICK: Duration = Duration::from_millis(100);
/// How long a poller is one without saying so again.
const LEASE_MS: u64 = 1_500;
/// How long the sidecar may hold a poll open.
const POLL_WAIT_MS: u32 = 20_000;
/// How far back the clock must go to be noticed: less than that does no harm, and some clocks are adjusted by
/// milliseconds all the time.
const CLOCK_SLACK_MS: u64 = 1_000;
/// How often a write to the board is tried again because another VM was faster.
const TRIES: usize = 4;
/// Claims made up for on one tick.
const CLAIMS_A_TICK: usize = 64;

pub(crate) struct Root {
    /// This VM's name on the board.
    name: u64,
    state: Option<Rc<State>>,
    poll_age: Option<PollAge>,
    poll: Option<u32>,
    /// Claims under way that no stream waits for.
    claims: Vec<(u32, Claim)>,
    polled_ms: u64,
    configured_ms: u64,
}

impl Root {
    pub(crate) fn new() -> Self {
        // Two VMs that start in the same nanosecond would both poll: wasteful, not wrong.
        let name = host::now_ns();
        Self {
            name,
            state: None,
            poll_age: None,
            poll: None,
            claims: Vec::new(),
            polled_ms: 0,
            configured_ms: 0,
        }
    }

    /// What the streams of this root share, once it is configured.
    pub(crate) fn state(&self) -> Option<&Rc<State>> {
        self.state.as_ref()
    }

    /// Reads the configuration. Whether it is a good one: Envoy does not start with another.
    pub(crate) fn configure(&mut self) -> bool {
        match Config::parse(&host::plugin_configuration(), |name| env::var(name).ok()) {
            Ok(config) => {
                self.configured_ms = host::now_ms();
                self.state = Some(Rc::new(State::new(config, self.configured_ms)));
                self.poll_age = Some(PollAge::define());
                host::tick_every(TICK).is_ok()
            }
            Err(error) => {
                host::log_critical(&format!("mooring: the filter's configuration is refused: {error}"));
                false
            }
        }
    }

    /// Takes back what only a living VM counts, and leaves the polling to others.
    pub(crate) fn retire(&self) {
        if let Some(state) = &self.state {
            state.retire();
            self.give_up_polling(state);
        }
    }

    /// Ten times a second.
    pub(crate) fn tick(&mut self) {
        let Some(state) = self.state.clone() else { return };
        let before = state.now_ms.replace(host::now_ms());
        if state.sidecar.is_some() {
            self.mind_the_clock(&state, before);
            let progress = state.board.progress().progress;
            self.catch_up(&state, &progress);
            self.follow(&state);
            self.make_up_claims(&state);
            if let Some(gauge) = &self.poll_age {
                // Nobody has polled yet: that counts as well.
                let since = if progress.polled_ms == 0 { self.configured_ms } else { progress.polled_ms };
                gauge.record(state.now_ms.get().saturating_sub(since) / 1_000);
            }
        }
        state.flush_metrics();
    }

    /// Begins a new era, in which all is asked for again, if the clock was put back since `before`: what was
    /// to be believed for a while would be believed for far longer.
    fn mind_the_clock(&self, state: &State, before: u64) {
        let now = state.now_ms.get();
        for _ in 0..TRIES {
            let seen = state.board.progress();
            let was_put_back = before.max(seen.progress.polled_ms) > now.saturating_add(CLOCK_SLACK_MS);
            // In another era than this VM's another VM has seen it.
            if !was_put_back || seen.progress.era != state.era.get() {
                return;
            }
            let (era, polled_ms) = (seen.progress.era + 1, seen.progress.polled_ms.min(now));
            if state.board.advance(&seen, &Progress { era, polled_ms, ..seen.progress }) {
                return;
            }
        }
    }

    /// The answer to a call that no stream waits for.
    pub(crate) fn answered(&mut self, token: u32, answer: Option<Vec<u8>>) {
        let Some(state) = self.state.clone() else { return };
        let Some(sidecar) = &state.sidecar else { return };
        if self.poll == Some(token) {
            self.poll = None;
            match answer.and_then(|body| wire::decode(&body)) {
                Some(reply) => {
                    count(&state.metrics.polls);
                    self.publish(&state, reply);
                    self.catch_up(&state, &state.board.progress().progress);
                }
                None => self.poll_failed(&state),
            }
        } else if let Some(claim) = self.take_claim(token) {
            match answer.and_then(|body| wire::decode::<ClaimReply>(&body)) {
                Some(reply) => state.learn_claim(claim.key, &reply),
                None => {
                    count(&state.metrics.claim_failures);
                    sidecar.failed(state.now_ms.get());
                    state.claim_later(claim);
                }
            }
        }
    }

    /// Brings this VM to what the board says.
    fn catch_up(&mut self, state: &State, progress: &Progress) {
        let cursor = state.cursor.get();
        if progress.cursor != cursor || progress.era != state.era.get() {
            let missed = (progress.era == state.era.get())
                .then(|| state.board.changes_between(cursor.position, progress.cursor.position))
                .flatten();
            match missed {
                Some(changes) => changes.iter().for_each(|change| state.apply(change)),
                None => state.reset(),
            }
            state.cursor.set(progress.cursor);
            state.era.set(progress.era);
        }
        let is_news = progress.membership != 0 && progress.membership != state.router.borrow().digest();
        if is_news && let Some(nodes) = state.board.nodes() {
            *state.router.borrow_mut() = Router::new(nodes);
        }
        if let (Some(sidecar), true) = (&state.sidecar, progress.polled_ms != self.polled_ms) {
            self.polled_ms = progress.polled_ms;
            sidecar.answered();
        }
    }

    /// Polls, if it is this VM's turn.
    fn follow(&mut self, state: &State) {
        let Some(sidecar) = &state.sidecar else { return };
        let now = state.now_ms.get();
        // Who cannot ask leaves it to others: of a configuration that was replaced, a renewed token is not known.
        if self.poll.is_none() && !sidecar.is_worth_asking(now) {
            return;
        }
        let seen = state.board.progress();
        let mut progress = seen.progress;
        // More than a lease's length is left only if the clock was put back since.
        let left = Some(progress.poller_until_ms.saturating_sub(now)).filter(|left| *left <= LEASE_MS);
        let left = left.unwrap_or_default();
        if progress.poller != self.name && left > 0 {
            return;
        }
        if progress.poller != self.name || left < LEASE_MS / 2 {
            (progress.poller, progress.poller_until_ms) = (self.name, now + LEASE_MS);
            if !state.board.advance(&seen, &progress) {
                return;
            }
        }
        if self.poll.is_none() {
            let query = WatchQuery {
                generation: progress.cursor.generation,
                position: progress.cursor.position,
                membership: progress.membership,
                wait_ms: POLL_WAIT_MS,
            };
            match sidecar.watch(&query) {
                Ok(token) => self.poll = Some(token),
                Err(_) => self.poll_failed(state),
            }
        }
    }

    fn poll_failed(&self, state: &State) {
        count(&state.metrics.poll_failures);
        if let Some(sidecar) = &state.sidecar {
            sidecar.failed(state.now_ms.get());
        }
        self.give_up_polling(state);
    }

    /// Ends the lease, if this VM has it.
    fn give_up_polling(&self, state: &State) {
        for _ in 0..TRIES {
            let seen = state.board.progress();
            let is_poller = seen.progress.poller == self.name;
            if !is_poller || state.board.advance(&seen, &Progress { poller_until_ms: 0, ..seen.progress }) {
                return;
            }
        }
    }

    /// Puts the sidecar's answer on the board, for all VMs, unless somebody else polls by now.
    fn publish(&self, state: &State, reply: WatchReply) {
        let seen = state.board.progress();
        if seen.progress.poller != self.name {
            return;
        }
        let mut progress = Progress { cursor: reply.cursor, polled_ms: state.now_ms.get(), ..seen.progress };
        if reply.reset {
            progress.era = state.now_ms.get().max(progress.era + 1);
            state.board.clear_changes();
        } else {
            for change in &reply.changes {
                state.board.record(&change.key, &state.holding_of(change), progress.era, state.now_ms.get());
            }
            state.board.add_changes(&reply.changes);
        }
        if let Some(nodes) = reply.membership.filter(|nodes| !nodes.nodes().is_empty()) {
            state.board.set_nodes(&nodes);
            progress.membership = nodes.digest();
        }
        state.board.advance(&seen, &progress);
    }

    fn take_claim(&mut self, token: u32) -> Option<Claim> {
        let place = self.claims.iter().position(|(other, _)| *other == token)?;
        Some(self.claims.swap_remove(place).1)
    }

    /// Makes up for the claims that the sidecar has not heard of.
    fn make_up_claims(&mut self, state: &State) {
        let Some(sidecar) = state.sidecar.as_ref().filter(|s| s.is_worth_asking(state.now_ms.get())) else {
            return;
        };
        let mut waiting = state.waiting_claims.borrow_mut();
        while self.claims.len() < CLAIMS_A_TICK {
            let Some(claim) = waiting.pop_front() else { return };
            // A node that was taken from the list meanwhile: the sidecar would refuse it for ever.
            if state.router.borrow().id_of_seed(claim.node.seed()).is_none() {
                count(&state.metrics.claims_dropped);
                continue;
            }
            count(&state.metrics.claims);
            match sidecar.claim(&claim) {
                Ok(token) => self.claims.push((token, claim)),
                Err(_) => {
                    sidecar.failed(state.now_ms.get());
                    return waiting.push_front(claim);
                }
            }
        }
    }
}
