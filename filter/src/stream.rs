//! One request: where to send it, and whose session its response begins.

use std::rc::Rc;

use affinity::{
    IdProof, Port, SessionKey,
    address::{client_address, peer_address},
    cookie,
    key::LONGEST_ID,
    plan::{Plan, Reason},
    wire::{self, Claim, ClaimReply, Left, Origin, OwnerReply},
};

use crate::{
    host::{self, Half, Map},
    metrics::count,
    owners::Holding,
    sidecar::Sidecar,
    state::State,
    vm::Action,
};

/// For Envoy's `stateful_session`: the chosen node's address in base64. On a response it is there if
/// another host served, and names that one.
const UPSTREAM: &str = "x-mooring-upstream";
/// For Envoy's `override_host`: the addresses to try next.
const NEXT: &str = "x-mooring-next";

/// What a stream waits for.
enum Waiting {
    Nothing,
    /// The call that looks up the owner of the request's session; meanwhile what was known of it.
    Owner(u32, SessionKey, Option<Holding>),
    /// The call that claims the request's session, whose owner is down.
    Takeover(u32, Claim),
    /// The call that claims the response's session.
    Claim(u32, Claim),
}

pub(crate) struct Stream {
    state: Rc<State>,
    port: Port,
    has_body: bool,
    /// The request's session.
    session: Option<SessionKey>,
    /// Its id, if it is one that Odoo can have made: the proof of it is made where it is needed.
    sid: Option<Vec<u8>>,
    /// The seed of the node chosen.
    chosen: Option<u64>,
    waiting: Waiting,
}

impl Stream {
    pub(crate) fn new(state: Rc<State>) -> Self {
        Self {
            state,
            port: Port::Http,
            has_body: false,
            session: None,
            sid: None,
            chosen: None,
            waiting: Waiting::Nothing,
        }
    }

    /// Chooses the node of a request.
    pub(crate) fn request(&mut self, has_body: bool) -> Action {
        self.has_body = has_body;
        let path = host::header(Map::Request, ":path");
        self.port = Port::of_path(&path.unwrap_or_default());
        let cookies = host::cookies();
        match cookies.as_deref().and_then(cookie::session_id) {
            Some(sid) => {
                self.sid = (sid.len() <= LONGEST_ID).then(|| sid.to_vec());
                self.route_session(SessionKey::of_session_id(sid))
            }
            None => {
                let plan = self.state.router.borrow().plan_newcomer(self.address_key());
                self.choose(&plan);
                let metrics = &self.state.metrics;
                count(if self.chosen.is_some() { &metrics.by_address } else { &metrics.nowhere });
                Action::Continue
            }
        }
    }

    /// Claims the session that a response begins.
    pub(crate) fn response(&mut self) -> Action {
        let served_by = self.served_by();
        match (served_by, self.session_set()) {
            // A node that sends a session's own id back did not begin it: it may never have had it, as
            // with a websocket of a session whose owner is gone.
            (Some(seed), Some(key)) if self.session != Some(key) => self.claim_entry(key, seed),
            (Some(seed), _) if self.chosen != Some(seed) => self.claim_in_place(seed),
            _ => Action::Continue,
        }
    }

    /// The call whose answer it waits for.
    pub(crate) fn awaits(&self) -> Option<u32> {
        match self.waiting {
            Waiting::Nothing => None,
            Waiting::Owner(token, ..) | Waiting::Takeover(token, _) | Waiting::Claim(token, _) => Some(token),
        }
    }

    /// Goes on with the answer that it waits for. A reply that came before its request had gone on
    /// left an answer that nobody waits for any more.
    pub(crate) fn answered(&mut self, token: u32, answer: Option<Vec<u8>>) {
        if self.awaits() != Some(token) {
            return;
        }
        match std::mem::replace(&mut self.waiting, Waiting::Nothing) {
            Waiting::Owner(_, key, known) => {
                if self.owner_answered(key, known, answer) == Action::Continue {
                    host::resume(Half::Request);
                }
            }
            Waiting::Takeover(_, claim) => {
                let (key, known) = (claim.key, self.state.known(&claim.key));
                self.claim_answered(claim, answer);
                self.route(key, self.state.known(&key).or(known).and_then(|holding| holding.owner));
                host::resume(Half::Request);
            }
            Waiting::Claim(_, claim) => {
                self.claim_answered(claim, answer);
                host::resume(Half::Response);
            }
            Waiting::Nothing => {}
        }
    }

    /// The sidecar, if there is one and it is worth asking.
    fn sidecar(state: &State) -> Option<&Sidecar> {
        state.sidecar.as_ref().filter(|sidecar| sidecar.is_worth_asking(state.now_ms.get()))
    }

    /// Routes the request of a session, or has it wait until its owner is known.
    fn route_session(&mut self, key: SessionKey) -> Action {
        self.session = Some(key);
        let known = self.state.known(&key);
        if let Some(holding) = known.filter(|holding| self.state.is_fresh(holding)) {
            return self.route_known(key, holding);
        }
        if let Some(sidecar) = Self::sidecar(&self.state) {
            count(&self.state.metrics.lookups);
            if let Ok(token) = sidecar.look_up(&key) {
                self.waiting = Waiting::Owner(token, key, known);
                return Action::Pause;
            }
            self.lookup_failed();
        }
        self.route_unasked(key, known);
        Action::Continue
    }

    /// Routes to who owns the session. If that one is down, another is made its owner before.
    fn route_known(&mut self, key: SessionKey, holding: Holding) -> Action {
        let plan = self.state.router.borrow().plan(key, holding.owner);
        if plan.reason == Reason::OwnerDown
            && let Some(claim) = self.takeover(key, holding, &plan)
            && let Some(sidecar) = Self::sidecar(&self.state)
        {
            count(&self.state.metrics.takeovers);
            if let Ok(token) = sidecar.claim(&claim) {
                self.waiting = Waiting::Takeover(token, claim);
                return Action::Pause;
            }
            self.claim_failed();
        }
        self.send(&plan);
        Action::Continue
    }

    /// The claim of the first node of a plan, if it can serve what it did not begin.
    fn takeover(&self, key: SessionKey, holding: Holding, plan: &Plan) -> Option<Claim> {
        let router = self.state.router.borrow();
        let node = router.carrier(router.seed(*plan.places.first()?)?)?.clone();
        Some(Claim { key, node, expect: holding.epoch, origin: Origin::Failover })
    }

    /// Routes by what was known before, or home: the sidecar cannot be asked.
    fn route_unasked(&mut self, key: SessionKey, known: Option<Holding>) {
        if self.state.sidecar.is_some() {
            count(&self.state.metrics.unasked);
        }
        self.route(key, known.and_then(|holding| holding.owner));
    }

    fn sidecar_answered(&self) {
        if let Some(sidecar) = &self.state.sidecar {
            sidecar.answered();
        }
    }

    fn lookup_failed(&self) {
        count(&self.state.metrics.lookup_failures);
        if let Some(sidecar) = &self.state.sidecar {
            sidecar.failed(self.state.now_ms.get());
        }
    }

    /// Tells Envoy where the request of `key` goes.
    fn route(&mut self, key: SessionKey, owner: Option<u64>) {
        let plan = self.state.router.borrow().plan(key, owner);
        self.send(&plan);
    }

    fn send(&mut self, plan: &Plan) {
        self.choose(plan);
        let metrics = &self.state.metrics;
        count(match plan.reason {
            _ if self.chosen.is_none() => &metrics.nowhere,
            Reason::Owner | Reason::AllDown => &metrics.to_owner,
            Reason::Home => &metrics.to_home,
            Reason::OwnerDown => &metrics.to_standby,
        });
    }

    /// Writes the two headers. Whatever the client sent in their place is overwritten or removed.
    fn choose(&mut self, plan: &Plan) {
        let state = Rc::clone(&self.state);
        let router = state.router.borrow();
        let write = |name: &str, value: Option<&[u8]>| match value {
            Some(value) => host::set_header(Map::Request, name, value),
            None => host::remove_header(Map::Request, name),
        };
        let upstream = plan.places.first().and_then(|place| router.upstream(*place, self.port));
        write(UPSTREAM, upstream.map(str::as_bytes));
        let next = router.next(plan.places.get(1..).unwrap_or_default(), self.port);
        write(NEXT, Some(next.as_bytes()).filter(|next| !next.is_empty()));
        self.chosen = plan.places.first().and_then(|place| router.seed(*place));
    }

    /// The key of a client without a session.
    fn address_key(&self) -> SessionKey {
        let config = &self.state.config;
        let forwarded = || {
            let chain = host::header(Map::Request, "x-forwarded-for")?;
            client_address(&chain, config.trusted_proxies)
        };
        let behind_proxies = if config.trusted_proxies > 0 { forwarded() } else { None };
        let address = behind_proxies.or_else(|| peer_address(&host::source_address()?));
        // Clients on a Unix socket have no address and share a home.
        let address = address.unwrap_or(core::net::IpAddr::V4(core::net::Ipv4Addr::UNSPECIFIED));
        SessionKey::of_address(address, config.ipv6_prefix)
    }

    /// Who served the request, as far as it is known.
    fn served_by(&self) -> Option<u64> {
        let Some(other) = host::header(Map::Response, UPSTREAM) else { return self.chosen };
        host::remove_header(Map::Response, UPSTREAM);
        count(&self.state.metrics.elsewhere);
        self.state.router.borrow().seed_of_upstream(&other)
    }

    /// The session whose id the response sets, if it sets one.
    fn session_set(&self) -> Option<SessionKey> {
        host::header(Map::Response, "set-cookie")?;
        let headers = host::all_headers(Map::Response, "set-cookie");
        cookie::set_session_id(&headers).map(SessionKey::of_session_id)
    }

    /// Claims a session for the node that began it, unless it has an owner.
    fn claim_entry(&mut self, key: SessionKey, seed: u64) -> Action {
        if self.state.known(&key).is_some_and(|holding| holding.owner.is_some()) {
            return Action::Continue;
        }
        let Some(node) = self.state.router.borrow().id_of_seed(seed).cloned() else {
            return Action::Continue;
        };
        let proof = self.sid.as_deref().map(IdProof::of_session_id);
        let left = self.session.zip(proof).map(|(key, proof)| Left { key, proof });
        // Who had a session or sends something logs in or out; who did not, just came by.
        let origin = match (left, self.has_body) {
            (None, false) => Origin::Visit,
            (left, posted) => Origin::Entry { left, posted },
        };
        self.claim(Claim { key, node, expect: 0, origin })
    }

    /// Claims the request's session for a node that served it in its owner's place.
    fn claim_in_place(&mut self, seed: u64) -> Action {
        let Some(key) = self.session else { return Action::Continue };
        let known = self.state.known(&key);
        if known.is_some_and(|holding| holding.owner == Some(seed)) {
            return Action::Continue;
        }
        let Some(node) = self.state.router.borrow().carrier(seed).cloned() else { return Action::Continue };
        let expect = known.map_or(0, |holding| holding.epoch);
        self.claim(Claim { key, node, expect, origin: Origin::Failover })
    }

    fn claim(&mut self, claim: Claim) -> Action {
        if let Some(sidecar) = Self::sidecar(&self.state) {
            count(&self.state.metrics.claims);
            if let Ok(token) = sidecar.claim(&claim) {
                self.waiting = Waiting::Claim(token, claim);
                return Action::Pause;
            }
            self.claim_failed();
        }
        self.state.claim_later(claim);
        Action::Continue
    }

    fn claim_failed(&self) {
        count(&self.state.metrics.claim_failures);
        if let Some(sidecar) = &self.state.sidecar {
            sidecar.failed(self.state.now_ms.get());
        }
    }

    fn owner_answered(&mut self, key: SessionKey, known: Option<Holding>, answer: Option<Vec<u8>>) -> Action {
        let reply = answer.and_then(|body| wire::decode::<OwnerReply>(&body));
        let Some(reply) = reply else {
            self.lookup_failed();
            self.route_unasked(key, known);
            return Action::Continue;
        };
        self.sidecar_answered();
        let now = self.state.now_ms.get();
        let holding = reply.owner.map_or_else(
            || Holding::nobody(now),
            |owner| Holding::owned(owner.node.seed(), owner.epoch, now, u64::from(reply.believe_s) * 1_000),
        );
        let holding = self.state.learn(key, holding);
        self.route_known(key, holding)
    }

    fn claim_answered(&mut self, claim: Claim, answer: Option<Vec<u8>>) {
        match answer.and_then(|body| wire::decode::<ClaimReply>(&body)) {
            Some(reply) => {
                self.sidecar_answered();
                self.state.learn_claim(claim.key, &reply);
            }
            None => {
                self.claim_failed();
                self.state.claim_later(claim);
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // A browser that leaves early gets no answer to its claim, but its session has begun or moved.
        if let Waiting::Claim(_, claim) = std::mem::replace(&mut self.waiting, Waiting::Nothing) {
            self.state.claim_later(claim);
        }
    }
}
