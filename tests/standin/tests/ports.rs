//! The two ports, what a test can see in the answers, start and end of the process.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test"
)]

mod support;

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use support::{Cluster, PROFILES, read_answer, request, send};

const NO_HEADERS: [(&str, &str); 0] = [];

#[test]
fn workers_close_the_connection_and_gevent_keeps_it() {
    let cluster = Cluster::new("19");
    let node = cluster.node("odoo-1");
    let ask = request("GET", "/web/health", &NO_HEADERS, "");

    let mut worker = TcpStream::connect(node.http).unwrap();
    worker.write_all(ask.as_bytes()).unwrap();
    let mut worker = BufReader::new(worker);
    let answer = read_answer(&mut worker);
    assert_eq!((answer.version.as_str(), answer.header("connection")), ("HTTP/1.0", Some("close")));
    assert_eq!(answer.header("x-standin-port"), Some("http"));
    assert_eq!(worker.read(&mut [0]).unwrap(), 0, "closed");

    let mut gevent = BufReader::new(TcpStream::connect(node.gevent).unwrap());
    for _ in 0..3 {
        gevent.get_mut().write_all(ask.as_bytes()).unwrap();
        let answer = read_answer(&mut gevent);
        assert_eq!((answer.version.as_str(), answer.status), ("HTTP/1.1", 200));
        assert_eq!(answer.header("x-standin-port"), Some("gevent"));
    }
    assert_eq!(node.state()["requests"], json!({"http": 1, "gevent": 3}));
}

#[test]
fn long_polling_is_16_on_the_gevent_port() {
    for profile in PROFILES {
        let cluster = Cluster::new(profile);
        let node = cluster.node("odoo-1");
        let ask = request("POST", "/longpolling/poll?ms=50", &NO_HEADERS, "{}");
        let started = Instant::now();
        let (gevent, http) = (send(node.gevent, &ask), send(node.http, &ask));
        if profile == "16" {
            assert_eq!(gevent.json()["result"]["node"], "odoo-1");
            assert!(started.elapsed() >= Duration::from_millis(50));
            assert_eq!(http.json()["error"]["message"], "bus.Bus unavailable");
        } else {
            assert_eq!((gevent.status, http.status), (404, 404), "{profile}");
        }
    }
}

#[test]
fn answers_show_what_reached_the_node_but_not_the_session_id() {
    let cluster = Cluster::new("18");
    let node = cluster.node("odoo-1");
    let sid = node.login("alice");
    let cookie = format!("session_id={sid}");
    let headers = [
        ("Cookie", cookie.as_str()),
        ("X-Mooring-Upstream", "x"),
        ("x-mooring-key", "x"),
        ("X-Forwarded-For", "192.0.2.1, 192.0.2.2"),
        ("X-Forwarded-Proto", "https"),
    ];
    let answer = node.get_with("/report/slow?ms=1", &headers);
    assert_eq!(answer.header("x-standin-node"), Some("odoo-1"));
    assert_eq!(answer.header("x-standin-login"), Some("alice"));
    assert_eq!(answer.header("x-standin-seen"), Some("x-mooring-key,x-mooring-upstream"));
    assert_eq!(answer.header("x-standin-forwarded"), Some("192.0.2.1, 192.0.2.2;;https"));
    let outside_cookies = answer.headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("set-cookie"));
    assert!(outside_cookies.clone().count() > 5);
    assert!(outside_cookies.clone().all(|(_, value)| !value.contains(&sid)));
    assert!(!answer.text().contains(&sid) && !node.state().to_string().contains(&sid));

    let plain = node.get("/nothing", None);
    assert_eq!((plain.status, plain.header("x-standin-seen"), plain.login()), (404, Some(""), ""));
}

#[test]
fn an_upload_is_counted_and_hashed() {
    let cluster = Cluster::new("19");
    let node = cluster.node("odoo-1");
    let sid = node.login("alice");
    for size in [0, 1, 3_000_000] {
        let body = "mooring ".repeat(size / 8 + 1)[..size].to_owned();
        let answer = node.post("/web/upload", Some(&sid), &body);
        let hash = blake3::hash(body.as_bytes()).to_string();
        let expected = json!({"node": "odoo-1", "login": "alice", "bytes": size, "blake3": hash});
        assert_eq!(answer.json(), expected);
    }
    let chunked =
        "POST /web/upload HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    assert_eq!(send(node.http, chunked).json()["bytes"], 3);
}

#[test]
fn odd_requests_get_an_error_and_no_cookie() {
    let cluster = Cluster::new("19");
    let node = cluster.node("odoo-1");
    let table = [
        ("GET", "/web/upload", "", 405),
        ("POST", "/web/health", "x", 405),
        ("POST", "/web/dataset/call_kw", "[]", 400),
        ("POST", "/standin/change_password", "password=x", 400),
        ("GET", "/longpolling", "", 404),
    ];
    for (method, path, body, status) in table {
        let answer = send(node.http, &request(method, path, &NO_HEADERS, body));
        assert_eq!((answer.status, answer.sid()), (status, None), "{method} {path}");
    }
    let plain = send(node.gevent, &request("GET", "/websocket", &NO_HEADERS, ""));
    assert_eq!((plain.status, plain.sid()), (400, None));
}

#[test]
fn sigterm_ends_it_with_status_0_and_sessions_outlive_a_restart() {
    let cluster = Cluster::new("19");
    let mut node = cluster.node("odoo-1");
    let sid = node.login("alice");
    assert_eq!(node.terminate().code(), Some(0));
    assert_eq!(cluster.node("odoo-1").get("/odoo", Some(&sid)).login(), "alice");
}

#[test]
fn a_port_in_use_is_an_error_one_can_read() {
    let cluster = Cluster::new("19");
    let node = cluster.node("odoo-1");
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_odoo-standin"))
        .args(["--http", &node.http.to_string(), "--gevent", "127.0.0.1:0"])
        .args([std::ffi::OsStr::new("--data-dir"), dir.path().as_os_str()])
        .args([std::ffi::OsStr::new("--shared-dir"), dir.path().as_os_str()])
        .output()
        .unwrap();
    assert!(!output.status.success() && output.stdout.is_empty());
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains(&format!("cannot listen on --http {}", node.http)), "{message}");
}
