//! The websocket: which port, which session, and what its handshake writes.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test"
)]

mod support;

use std::fs;
use std::net::TcpStream;

use serde_json::json;
use support::{Cluster, Node, PROFILES, request, send};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::Response;
use tokio_tungstenite::tungstenite::{Message, WebSocket, client};

type Socket = WebSocket<TcpStream>;

fn connect(node: &Node, sid: &str) -> (Socket, Response) {
    let mut request = format!("ws://{}/websocket?version=18.0-7", node.gevent).into_client_request().unwrap();
    request.headers_mut().insert("cookie", format!("session_id={sid}").parse().unwrap());
    client(request, TcpStream::connect(node.gevent).unwrap()).unwrap()
}

fn ask(socket: &mut Socket, text: &str) -> Message {
    socket.send(Message::text(text)).unwrap();
    socket.read().unwrap()
}

#[test]
fn it_works_on_the_gevent_port_only() {
    for profile in PROFILES {
        let cluster = Cluster::new(profile);
        let node = cluster.node("odoo-1");
        let sid = node.login("alice");
        let handshake = [
            ("Cookie", format!("session_id={sid}")),
            ("Upgrade", "websocket".to_owned()),
            ("Connection", "Upgrade".to_owned()),
            ("Sec-WebSocket-Version", "13".to_owned()),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==".to_owned()),
        ];
        let refused = send(node.http, &request("GET", "/websocket", &handshake, ""));
        assert_eq!((refused.status, refused.sid()), (500, None), "{profile}");
        let accepted = send(node.gevent, &request("GET", "/websocket", &handshake, ""));
        let accept_key = accepted.header("sec-websocket-accept");
        assert_eq!((accepted.status, accept_key), (101, Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")), "{profile}");

        let (mut socket, response) = connect(&node, &sid);
        let cookie = response.headers()["set-cookie"].to_str().unwrap();
        assert!(cookie.starts_with(&format!("session_id={sid};")), "{profile}: {cookie}");
        assert_eq!(response.headers()["x-standin-node"], "odoo-1");
        assert_eq!(response.headers()["x-standin-login"], "alice");
        assert_eq!(ask(&mut socket, "hello"), Message::text("odoo-1:alice:hello"), "{profile}");
        assert_eq!(node.state()["websockets"], 1);
        assert_eq!(node.state()["routes"]["/websocket"], 3);
    }
}

#[test]
fn a_handshake_saves_an_anonymous_file_under_an_unknown_id() {
    for profile in PROFILES {
        let cluster = Cluster::new(profile);
        let (a, b) = (cluster.node("odoo-1"), cluster.node("odoo-2"));
        let sid = a.login("alice");
        let (mut socket, response) = connect(&b, &sid);
        let cookie = response.headers()["set-cookie"].to_str().unwrap();
        assert!(cookie.starts_with(&format!("session_id={sid};")), "{profile}: {cookie}");
        assert_eq!(b.state()["sessions"], json!({"files": 1, "logged_in": 0, "anonymous": 1}), "{profile}");
        assert!(b.has(&sid), "{profile}");
        assert_eq!(ask(&mut socket, "hello"), Message::text("odoo-2::hello"), "{profile}");

        // The session is read again for every message.
        a.copy_to(&b, &sid);
        assert_eq!(ask(&mut socket, "hello"), Message::text("odoo-2:alice:hello"), "{profile}");
    }
}

#[test]
fn it_closes_when_the_session_is_gone_or_stale() {
    for profile in PROFILES {
        let cluster = Cluster::new(profile);
        let node = cluster.node("odoo-1");
        let (gone, stale) = (node.login("alice"), node.login("bob"));
        let (mut first, _) = connect(&node, &gone);
        let (mut second, _) = connect(&node, &stale);
        fs::remove_file(node.file(&gone)).unwrap();
        node.post("/standin/change_password", None, "login=bob&password=new");
        for socket in [&mut first, &mut second] {
            match ask(socket, "hello") {
                Message::Close(Some(frame)) => assert_eq!(u16::from(frame.code), 4001, "{profile}"),
                other => panic!("{profile}: {other:?}"),
            }
        }
    }
}

#[test]
fn it_follows_a_soft_rotation() {
    let cluster = Cluster::with("19", &["--rotation-secs", "1"]);
    let node = cluster.node("odoo-1");
    let sid = node.login("alice");
    let (mut socket, _) = connect(&node, &sid);
    std::thread::sleep(std::time::Duration::from_millis(1_100));
    let next = node.get("/report/slow", Some(&sid)).sid().unwrap();
    assert_ne!(next, sid);
    assert_eq!(ask(&mut socket, "one"), Message::text("odoo-1:alice:one"));
    fs::remove_file(node.file(&sid)).unwrap();
    assert_eq!(ask(&mut socket, "two"), Message::text("odoo-1:alice:two"));
}
