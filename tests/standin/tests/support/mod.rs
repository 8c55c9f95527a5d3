//! Starts the real binary and speaks HTTP to it over plain TCP.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

/// Every version the stand-in knows.
pub(crate) const PROFILES: [&str; 3] = ["16", "18", "19"];

/// Several nodes with one database.
pub(crate) struct Cluster {
    dir: tempfile::TempDir,
    profile: &'static str,
    options: Vec<&'static str>,
}

/// A running stand-in.
pub(crate) struct Node {
    child: Child,
    pub(crate) http: SocketAddr,
    pub(crate) gevent: SocketAddr,
    pub(crate) sessions: PathBuf,
}

impl Cluster {
    pub(crate) fn new(profile: &'static str) -> Self {
        Cluster::with(profile, &[])
    }

    pub(crate) fn with(profile: &'static str, options: &[&'static str]) -> Self {
        Cluster { dir: tempfile::tempdir().unwrap(), profile, options: options.to_vec() }
    }

    pub(crate) fn node(&self, id: &str) -> Node {
        let data_dir = self.dir.path().join(id);
        let mut child = Command::new(env!("CARGO_BIN_EXE_odoo-standin"))
            .args(["--id", id, "--http", "127.0.0.1:0", "--gevent", "127.0.0.1:0", "--profile", self.profile])
            .arg("--data-dir")
            .arg(&data_dir)
            .arg("--shared-dir")
            .arg(self.dir.path().join("shared"))
            .args(&self.options)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(ready["id"], id);
        let address = |name: &str| ready[name].as_str().unwrap().parse().unwrap();
        Node { http: address("http"), gevent: address("gevent"), sessions: data_dir.join("sessions"), child }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Node {
    pub(crate) fn get(&self, path: &str, sid: Option<&str>) -> Answer {
        send(self.http, &request("GET", path, &cookie(sid), ""))
    }

    pub(crate) fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        send(self.http, &request("GET", path, headers, ""))
    }

    pub(crate) fn post(&self, path: &str, sid: Option<&str>, body: &str) -> Answer {
        send(self.http, &request("POST", path, &cookie(sid), body))
    }

    pub(crate) fn call(&self, path: &str, sid: Option<&str>, params: Value) -> Value {
        let body = json!({"jsonrpc": "2.0", "method": "call", "id": 7, "params": params}).to_string();
        let answer = self.post(path, sid, &body);
        assert_eq!((answer.status, answer.json()["id"].as_i64()), (200, Some(7)), "{answer:?}");
        answer.json()
    }

    /// Logs in as a browser does and returns the new session id.
    pub(crate) fn login(&self, login: &str) -> String {
        let page = self.get("/web/login", None);
        let anonymous = page.sid().unwrap();
        let answer = self.post_login(&anonymous, login, &format!("pw-{login}"), &page.csrf_token());
        assert_eq!((answer.status, answer.header("location")), (303, Some("/odoo")), "{answer:?}");
        answer.sid().unwrap()
    }

    pub(crate) fn post_login(&self, sid: &str, login: &str, password: &str, token: &str) -> Answer {
        let form = format!("login={login}&password={password}&csrf_token={token}&redirect=");
        self.post("/web/login", Some(sid), &form)
    }

    pub(crate) fn file(&self, sid: &str) -> PathBuf {
        self.sessions.join(&sid[..2]).join(sid)
    }

    pub(crate) fn has(&self, sid: &str) -> bool {
        self.file(sid).exists()
    }

    /// The content of a JSON session file.
    pub(crate) fn session(&self, sid: &str) -> Value {
        serde_json::from_slice(&fs::read(self.file(sid)).unwrap()).unwrap()
    }

    /// Copies a session file as replication would.
    pub(crate) fn copy_to(&self, other: &Node, sid: &str) {
        fs::create_dir_all(other.file(sid).parent().unwrap()).unwrap();
        fs::copy(self.file(sid), other.file(sid)).unwrap();
    }

    pub(crate) fn files(&self) -> usize {
        self.state()["sessions"]["files"].as_u64().unwrap() as usize
    }

    pub(crate) fn state(&self) -> Value {
        self.get("/standin/state", None).json()
    }

    pub(crate) fn terminate(&mut self) -> std::process::ExitStatus {
        Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        self.child.wait().unwrap()
    }
}

/// A parsed HTTP answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) version: String,
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.all(name).first().copied()
    }

    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let headers = self.headers.iter();
        headers.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str()).collect()
    }

    /// The values of all session cookies that are set.
    pub(crate) fn sids(&self) -> Vec<String> {
        let cookies = self.all("set-cookie").into_iter().filter_map(|c| c.strip_prefix("session_id="));
        cookies.map(|cookie| cookie.split(';').next().unwrap().to_owned()).collect()
    }

    pub(crate) fn sid(&self) -> Option<String> {
        self.sids().pop()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn login(&self) -> &str {
        self.header("x-standin-login").unwrap()
    }

    pub(crate) fn csrf_token(&self) -> String {
        let page = self.text();
        let (_, rest) = page.split_once("name=\"csrf_token\" value=\"").unwrap();
        rest.split('"').next().unwrap().to_owned()
    }
}

fn cookie(sid: Option<&str>) -> Vec<(&'static str, String)> {
    sid.map(|sid| ("Cookie", format!("session_id={sid}"))).into_iter().collect()
}

pub(crate) fn request(method: &str, path: &str, headers: &[(&str, impl AsRef<str>)], body: &str) -> String {
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: odoo.example\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {}\r\n", value.as_ref());
    }
    if method == "POST" {
        text += &format!("Content-Length: {}\r\n", body.len());
    }
    text + "\r\n" + body
}

/// Sends one request on a connection of its own.
pub(crate) fn send(address: SocketAddr, request: &str) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    read_answer(&mut BufReader::new(stream))
}

/// Reads one answer and leaves the connection as it is.
pub(crate) fn read_answer(stream: &mut impl BufRead) -> Answer {
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    let (version, rest) = line.split_once(' ').unwrap_or_else(|| panic!("no answer: {line:?}"));
    let (version, status) = (version.to_owned(), rest[..3].parse().unwrap());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let mut answer = Answer { version, status, headers, body: Vec::new() };
    let length = answer.header("content-length").map_or(0, |length| length.parse().unwrap());
    answer.body.resize(length, 0);
    stream.read_exact(&mut answer.body).unwrap();
    answer
}
