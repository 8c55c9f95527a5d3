//! What a request costs in the filter, without Envoy: nanoseconds and hostcalls.

use std::{collections::BTreeMap, process::ExitCode, time::Instant};

use affinity::NodeId;
use affinity::wire::{self, ClaimReply, Owner, OwnerReply};
use anyhow::Result;
use clap::Parser;
use comfy_table::{Cell, CellAlignment, Table, presets::UTF8_HORIZONTAL_ONLY};
use serde::Serialize;
use wasm_host::{Action, Headers, Host, Vm};

/// Measures the filter in wasmtime, a whole stream at a time: its context, the request's and the
/// response's headers, and its end.
#[derive(Parser)]
#[command(max_term_width = 100)]
struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// How many slices to measure; the quartiles are over them
    #[arg(long, default_value_t = 101, value_parser = clap::value_parser!(u32).range(1..))]
    slices: u32,
    /// Requests in a slice
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    requests: u32,
    /// How many nodes there are
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=250))]
    nodes: u8,
}

/// Sessions that take turns, so that not one alone is in the processor's cache.
const SESSIONS: u32 = 1_000;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// A context that is created and deleted.
    Empty,
    /// A session whose owner the VM knows.
    Owner,
    /// A session that nobody owns, as the VM knows.
    Home,
    /// The same where there is no sidecar.
    HomeAlone,
    /// No session: the client's address.
    Address,
    /// A session whose owner the sidecar must tell.
    LookUp,
    /// A session that the response begins.
    Claim,
}

const KINDS: [(Kind, &str); 7] = [
    (Kind::Empty, "no headers at all"),
    (Kind::Owner, "known owner"),
    (Kind::Home, "home"),
    (Kind::HomeAlone, "home, no sidecar"),
    (Kind::Address, "address"),
    (Kind::LookUp, "owner looked up"),
    (Kind::Claim, "session begun"),
];

#[derive(Serialize)]
struct Report {
    cases: Vec<Case>,
}

#[derive(Serialize)]
struct Case {
    name: &'static str,
    ns_median: f64,
    ns_q1: f64,
    ns_q3: f64,
    /// Of the median, the part spent in this host's functions and in the allocations that they ask of
    /// the module; without the time that measuring takes.
    ns_in_hostcalls: f64,
    /// Calls of each host function in one request.
    hostcalls: BTreeMap<&'static str, f64>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wasm-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let cases = KINDS.iter().map(|(kind, name)| measure(*kind, name, arguments));
    let report = Report { cases: cases.collect::<Result<_>>()? };
    if arguments.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print(&report);
    }
    Ok(())
}

fn configuration(nodes: u8, has_sidecar: bool) -> String {
    let node =
        |n| format!(r#"{{"id": "odoo-{n}", "http": "127.0.0.{n}:8069", "gevent": "127.0.0.{n}:8072"}}"#);
    let nodes = (1..=nodes).map(node).collect::<Vec<_>>().join(",");
    // The timeout never passes: time stands still here.
    let sidecar = if has_sidecar { r#""sidecar_cluster": "mooring","# } else { "" };
    format!(r#"{{{sidecar} "nodes": [{nodes}]}}"#)
}

fn sid(number: u32) -> String {
    format!("{number:042}{}", "x".repeat(42))
}

/// What a browser sends.
fn request(cookie: Option<&str>) -> Headers {
    let mut headers = vec![
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", "odoo.example.com"),
        (":path", "/web/dataset/call_kw/res.partner/web_search_read"),
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
        ("accept", "*/*"),
        ("accept-language", "en-US,en;q=0.5"),
        ("accept-encoding", "gzip, deflate, br, zstd"),
        ("content-type", "application/json"),
        ("referer", "https://odoo.example.com/odoo"),
        ("x-request-id", "0c0ffee0-0000-4000-8000-000000000000"),
        ("x-forwarded-proto", "https"),
    ];
    headers.extend(cookie.map(|cookie| ("cookie", cookie)));
    Headers::new(&headers)
}

/// What Odoo answers.
fn response(set_cookie: Option<&str>) -> Headers {
    let mut headers = vec![
        (":status", "200"),
        ("server", "Werkzeug/3.0.1 Python/3.12.3"),
        ("date", "Mon, 01 Jan 2024 00:00:00 GMT"),
        ("content-type", "application/json; charset=utf-8"),
        ("content-length", "1234"),
        ("x-content-type-options", "nosniff"),
    ];
    headers.extend(set_cookie.map(|cookie| ("set-cookie", cookie)));
    Headers::new(&headers)
}

/// A VM in which requests of one kind are run.
struct Bench {
    kind: Kind,
    vm: Vm,
    next: u32,
    owner: Owner,
}

impl Bench {
    fn new(kind: Kind, nodes: u8) -> Result<Self> {
        let host = Host::new()?;
        let vm = host.vm(configuration(nodes, kind != Kind::HomeAlone))?;
        vm.tick();
        let mut bench = Self { kind, vm, next: 0, owner: Owner { node: NodeId::new("odoo-1")?, epoch: 1 } };
        if matches!(kind, Kind::Owner | Kind::Home) {
            (0..SESSIONS).for_each(|_| bench.ask());
        }
        Ok(bench)
    }

    /// One request that must be looked up, to warm up.
    fn ask(&mut self) {
        let (request, response) = self.headers();
        self.run(request, response);
    }

    /// The headers of the next stream.
    fn headers(&mut self) -> (Headers, Headers) {
        self.next += 1;
        let number = match self.kind {
            Kind::LookUp | Kind::Claim => self.next,
            _ => self.next % SESSIONS,
        };
        let session = format!("frontend_lang=en_US; session_id={}; tz=Europe/Brussels", sid(number));
        match self.kind {
            Kind::Empty | Kind::Address => (request(None), response(None)),
            Kind::Claim => {
                let cookie = format!("session_id={}; HttpOnly; Path=/", sid(number));
                (request(None), response(Some(&cookie)))
            }
            _ => (request(Some(&session)), response(None)),
        }
    }

    fn run(&self, request: Headers, response: Headers) {
        let mut stream = self.vm.stream();
        if self.kind == Kind::Empty {
            return stream.begin();
        }
        if stream.request_headers_are(request) == Action::Pause {
            self.answer();
        }
        if stream.response_headers_are(response) == Action::Pause {
            self.answer();
        }
    }

    /// The sidecar's part.
    fn answer(&self) {
        for call in self.vm.calls() {
            let body = match call.path().as_str() {
                "/v1/claims" => wire::encode(&ClaimReply { granted: true, owner: self.owner.clone() }),
                path if path.starts_with("/v1/owners/") => {
                    let owner = (self.kind != Kind::Home).then(|| self.owner.clone());
                    wire::encode(&OwnerReply { owner, believe_s: 3_600 })
                }
                _ => continue,
            };
            self.vm.answer(call.token, 200, body);
        }
    }

    /// Runs a slice; nanoseconds a request.
    fn slice(&mut self, requests: u32) -> f64 {
        let headers: Vec<_> = (0..requests).map(|_| self.headers()).collect();
        let start = Instant::now();
        for (request, response) in headers {
            self.run(request, response);
        }
        start.elapsed().as_nanos() as f64 / f64::from(requests)
    }
}

fn measure(kind: Kind, name: &'static str, arguments: &Arguments) -> Result<Case> {
    let Arguments { slices, requests, nodes, .. } = *arguments;
    let mut bench = Bench::new(kind, nodes)?;
    bench.slice(requests);
    bench.vm.forget_hostcalls();
    let times = sorted((0..slices).map(|_| bench.slice(requests)));
    let count = f64::from(slices) * f64::from(requests);
    let hostcalls: BTreeMap<_, _> =
        bench.vm.hostcalls().into_iter().map(|(name, calls)| (name, calls as f64 / count)).collect();

    // Measured apart, because measuring takes its time.
    bench.vm.measure_hostcalls(true);
    let spent = sorted((0..slices).map(|_| {
        bench.vm.measure_hostcalls(true);
        bench.slice(requests);
        bench.vm.time_in_hostcalls().as_nanos() as f64 / f64::from(requests)
    }));
    let measuring = hostcalls.values().sum::<f64>() * clock_ns();
    Ok(Case {
        name,
        ns_median: round(quartile(&times, 2)),
        ns_q1: round(quartile(&times, 1)),
        ns_q3: round(quartile(&times, 3)),
        ns_in_hostcalls: round((quartile(&spent, 2) - measuring).max(0.0)),
        hostcalls,
    })
}

fn sorted(times: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut times: Vec<_> = times.collect();
    times.sort_by(f64::total_cmp);
    times
}

fn quartile(sorted: &[f64], quarter: usize) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get(last * quarter / 4).copied().unwrap_or_default()
}

/// What a clock shows between two looks at it with nothing between them.
fn clock_ns() -> f64 {
    const LOOKS: u32 = 100_000;
    let sum: u128 = (0..LOOKS).map(|_| Instant::now().elapsed().as_nanos()).sum();
    sum as f64 / f64::from(LOOKS)
}

fn round(nanoseconds: f64) -> f64 {
    (nanoseconds * 10.0).round() / 10.0
}

fn print(report: &Report) {
    let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
    let mut table = Table::new();
    table.load_preset(UTF8_HORIZONTAL_ONLY).set_header(["", "ns", "q1", "q3", "in hostcalls", "hostcalls"]);
    for case in &report.cases {
        let times = [case.ns_median, case.ns_q1, case.ns_q3, case.ns_in_hostcalls];
        let calls: f64 = case.hostcalls.values().fold(0.0, |sum, calls| sum + calls);
        let cells = times.map(|time| right(format!("{time:.0}")));
        table.add_row([Cell::new(case.name)].into_iter().chain(cells).chain([right(format!("{calls:.1}"))]));
    }
    println!("Nanoseconds a request (median and quartiles), and what of it this host takes\n\n{table}\n");
    let mut table = Table::new();
    let names = report.cases.iter().skip(1).map(|case| case.name);
    table.load_preset(UTF8_HORIZONTAL_ONLY).set_header([""].into_iter().chain(names));
    let all: std::collections::BTreeSet<_> =
        report.cases.iter().flat_map(|case| case.hostcalls.keys()).collect();
    for name in all {
        let count = |case: &Case| match case.hostcalls.get(name) {
            Some(calls) => right(format!("{calls:.1}")),
            None => Cell::new(""),
        };
        let counts = report.cases.iter().skip(1).map(count);
        table.add_row([Cell::new(name)].into_iter().chain(counts));
    }
    println!("Hostcalls a request\n\n{table}");
}
