//! Whatever happens, in any order.

use affinity::wire::{self, WatchReply};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use wasm_host::{Action, Call, Faults, Headers, Host, Status, Stream, Vm};

use crate::support::{Sidecar, change, no_news, nodes, sid, with_sidecar};

const REQUESTS: usize = 200_000;
const VMS: usize = 2;
/// Streams that are open at a time.
const OPEN: usize = 24;

/// Sessions in play: few enough that they meet.
const SESSIONS: u64 = 3_000;

struct Chaos {
    random: SmallRng,
    host: Host,
    vms: Vec<Vm>,
    streams: Vec<(usize, Stream)>,
    sidecar: Sidecar,
    requests: usize,
    position: u64,
}

impl Chaos {
    fn new(seed: u64) -> Self {
        let host = Host::new().unwrap();
        let configuration =
            with_sidecar().replacen('{', r#"{"trusted_proxies": 3, "table_entries": 1000,"#, 1);
        let vms: Vec<_> = (0..VMS).map(|_| host.vm(&configuration).unwrap()).collect();
        for (vm, salt) in vms.iter().zip(1..) {
            vm.set_faults(Some(Faults::new(seed.wrapping_mul(2) + salt, 20)));
        }
        let random = SmallRng::seed_from_u64(seed);
        Self { random, host, vms, streams: vec![], sidecar: Sidecar::default(), requests: 0, position: 0 }
    }

    fn step(&mut self) {
        match self.random.random_range(0..100) {
            0..45 => self.request(),
            45..65 => self.response(),
            65..85 => self.answer(),
            85..88 => self.vms[self.requests % VMS].tick(),
            88..91 => self.host.advance_ms(self.random.random_range(1..400)),
            91 => {
                let refusals = [None, None, Some(Status::BadArgument), Some(Status::InternalFailure)];
                let refusal = refusals[self.random.random_range(0..refusals.len())];
                self.vms[self.requests % VMS].refuse_calls(refusal);
            }
            _ => self.end(),
        }
    }

    fn request(&mut self) {
        if self.streams.len() >= OPEN {
            self.end();
        }
        let place = self.random.random_range(0..VMS);
        let source = self.text(30);
        let headers =
            self.headers(&[":path", "cookie", "x-forwarded-for", "x-mooring-key", "x-mooring-upstream"]);
        let mut stream = self.vms[place].stream();
        if self.random.random_ratio(1, 4) {
            stream = stream.from_address(Some(&source));
        }
        let action = stream.request_headers_are(headers);
        assert_eq!(action == Action::Pause, stream.is_request_paused());
        self.streams.push((place, stream));
        self.requests += 1;
    }

    fn response(&mut self) {
        if self.streams.is_empty() {
            return;
        }
        let headers = self.headers(&[":status", "set-cookie", "set-cookie", "x-mooring-upstream"]);
        let place = self.random.random_range(0..self.streams.len());
        let (_, stream) = &mut self.streams[place];
        // Also while the request waits: then Envoy itself replies.
        if !stream.is_response_paused() {
            stream.response_headers_are(headers);
        }
    }

    fn answer(&mut self) {
        let place = self.random.random_range(0..VMS);
        let vm = self.vms[place].clone();
        let calls = vm.calls();
        let Some(call) = calls.get(self.random.random_range(0..calls.len().max(1))) else { return };
        match self.random.random_range(0..10) {
            0 => vm.answer(call.token, 503, b"no healthy upstream"),
            4 => vm.reset_call(call.token),
            1 => {
                let rubbish = self.bytes(200);
                vm.answer(call.token, 200, rubbish);
            }
            2 => {
                let headers = self.headers(&[":status"]);
                let body = self.bytes(20);
                vm.answer_with(call.token, headers, body);
            }
            3 => {
                // A good answer to another question, or one that was cut or bent.
                let mut body = self.good_poll();
                let len = self.random.random_range(0..=body.len());
                body.truncate(len);
                if let Some(byte) = body.get_mut(len / 2) {
                    *byte ^= 1 << self.random.random_range(0..8);
                }
                vm.answer(call.token, 200, body);
            }
            _ => self.answer_well(&vm, call),
        }
    }

    fn answer_well(&mut self, vm: &Vm, call: &Call) {
        if call.path().starts_with("/v1/watch") {
            let body = self.good_poll();
            return vm.answer(call.token, 200, body);
        }
        self.sidecar.answer_all(vm);
    }

    fn good_poll(&mut self) -> Vec<u8> {
        let count = self.random.random_range(0..5);
        let names = [Some("odoo-1"), Some("odoo-3"), Some("gone"), None];
        let changes = (0..count)
            .map(|n| change(&sid(self.random.random_range(0..SESSIONS)), names[n % 4], self.position))
            .collect();
        self.position += count as u64;
        wire::encode(&WatchReply {
            reset: self.random.random_ratio(1, 20),
            changes,
            membership: self.random.random_ratio(1, 10).then(nodes),
            ..no_news(7, self.position)
        })
    }

    /// Answers everything that is under way; then nobody may wait any more.
    fn settle(&mut self) {
        for vm in &self.vms {
            vm.calls().iter().for_each(|call| vm.answer(call.token, 503, b""));
        }
        for (_, stream) in &self.streams {
            // To a request that has its response already, Envoy itself replied.
            let is_over = !stream.response_headers().is_empty();
            assert!(is_over || !stream.is_request_paused(), "{:?}", stream.request_headers());
            assert!(!stream.is_response_paused(), "{:?}", stream.response_headers());
        }
    }

    fn end(&mut self) {
        if !self.streams.is_empty() {
            let place = self.random.random_range(0..self.streams.len());
            self.streams.swap_remove(place);
        }
    }

    /// Some headers of these names and of others, with good values and rubbish.
    fn headers(&mut self, names: &[&'static str]) -> Headers {
        let list: Vec<(&str, Vec<u8>)> = (0..self.random.random_range(0..8))
            .map(|_| {
                let name = names[self.random.random_range(0..names.len())];
                let session = sid(self.random.random_range(0..SESSIONS));
                let value = match self.random.random_range(0..6) {
                    0 => self.bytes(40),
                    1 => [&b"session_id="[..], &self.bytes(90)].concat(),
                    2 => format!("a=b; session_id=\"{session}\"").into_bytes(),
                    3 if name == ":path" => b"/websocket?version=1".to_vec(),
                    3 if name == "x-mooring-upstream" => b"MTI3LjAuMC4xOjgwNjk=".to_vec(),
                    3 => b"203.0.113.9, [2001:db8::1]:99, 10.0.0.1".to_vec(),
                    _ => format!("session_id={session}; Path=/").into_bytes(),
                };
                (name, value)
            })
            .collect();
        Headers::new(&list)
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let len = self.random.random_range(0..=most);
        (0..len).map(|_| self.random.random()).collect()
    }

    fn text(&mut self, most: usize) -> String {
        String::from_utf8_lossy(&self.bytes(most)).into_owned()
    }
}

/// Set `WASM_HOST_SEED` to run the very same again.
#[test]
fn nothing_traps() {
    let fresh = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = std::env::var("WASM_HOST_SEED").map_or(fresh, |seed| seed.parse().unwrap());
    println!("seed {seed}: run again with WASM_HOST_SEED={seed}");
    let mut chaos = Chaos::new(seed);
    while chaos.requests < REQUESTS {
        chaos.step();
    }
    chaos.settle();
    for vm in &chaos.vms {
        println!("{} calls, {} bytes, {:?}", vm.calls_made(), vm.memory_bytes(), vm.hostcalls());
        assert!(vm.logs().is_empty(), "{:?}", vm.logs().first());
    }
}
