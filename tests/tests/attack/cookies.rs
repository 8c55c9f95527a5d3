//! Cookies that are made up from the first half of somebody's session id.

use anyhow::{Result, ensure};
use rand::{Rng, distr::Alphanumeric, seq::IndexedRandom};
use tokio::io::AsyncWriteExt;

use crate::{
    attackers::Attacker,
    connections,
    door::{Answer, hear},
    own::Own,
};

/// As an attacker logs in, who has an account of their own.
const OWN: &str = "mallory";

/// The lines of cookies in a request, made from the ids that somebody's session has had.
pub type Forge = fn(&[String]) -> Vec<Vec<u8>>;

/// What log files and Odoo's list of devices show.
fn half(ids: &[String]) -> &str {
    ids.last().and_then(|id| id.get(..42)).unwrap_or_default()
}

fn line(value: &[u8]) -> Vec<u8> {
    [b"session_id=", value].concat()
}

fn letters(count: usize) -> String {
    rand::rng().sample_iter(Alphanumeric).take(count).map(char::from).collect()
}

/// The half alone.
pub fn halves(ids: &[String]) -> Vec<Vec<u8>> {
    vec![line(half(ids).as_bytes())]
}

/// The half with another ending, which Odoo looks for.
pub fn endings(ids: &[String]) -> Vec<Vec<u8>> {
    vec![line(format!("{}{}", half(ids), letters(42)).as_bytes())]
}

/// The half with an ending that Odoo does not even look for.
pub fn refused(ids: &[String]) -> Vec<Vec<u8>> {
    let (whole, half) = (ids.last().cloned().unwrap_or_default(), half(ids));
    let values = [
        format!("{half}{}", "!".repeat(42)),
        format!("{whole}x"),
        format!("{}%41", &whole[..whole.len().saturating_sub(3)]),
        format!("{half}/../{}", letters(38)),
        format!("\"{half}{}", letters(42)),
        whole.to_lowercase(),
        format!("{half} {}", letters(41)),
    ];
    vec![line(values.choose(&mut rand::rng()).expect("some").as_bytes())]
}

/// Bytes that are no text.
pub fn no_text(ids: &[String]) -> Vec<Vec<u8>> {
    let ending: Vec<u8> = (0..42).map(|_| rand::random::<u8>() | 0x80).collect();
    vec![[&line(half(ids).as_bytes())[..], &ending].concat()]
}

/// An ending of 60 KB.
pub fn huge(ids: &[String]) -> Vec<Vec<u8>> {
    vec![line(format!("{}{}", half(ids), letters(60_000)).as_bytes())]
}

/// An id from before a rotation; a half where there was none yet.
pub fn outdated(ids: &[String]) -> Vec<Vec<u8>> {
    match ids {
        [old @ .., _] if !old.is_empty() => {
            vec![line(old.choose(&mut rand::rng()).expect("some").as_bytes())]
        }
        _ => halves(ids),
    }
}

/// Does with such a cookie what browsers and programs do: looks, logs in and out, opens a websocket.
pub async fn visit(attacker: Attacker, forge: Forge) -> Result<()> {
    let ids = attacker.target.somebody();
    ensure!(!ids.is_empty(), "nobody is at work");
    let cookies = forge(&ids);
    if rand::random_ratio(1, 8) {
        // Odoo keeps a file of this, too.
        let head = connections::WEBSOCKET.as_bytes();
        let mut stream = attacker.door.open().await?;
        stream.write_all(&[head, &lines_of(&cookies), b"\r\n"].concat()).await?;
        return hear(&mut stream).await;
    }
    let visit = any_visit();
    let what = visit.0.lines().next().unwrap_or_default().to_owned();
    let answer = send(&attacker, visit, &cookies).await?;
    let login = answer.header("x-standin-login");
    // For a moment an id from before a rotation is as good as the new one.
    if !login.is_empty() && login != OWN && !ids.iter().any(|id| cookies == [line(id.as_bytes())]) {
        attacker.harm(format!("{what} is taken for somebody else's"));
    }
    if answer.status >= 500 {
        let said = String::from_utf8_lossy(&answer.body).into_owned();
        attacker.harm(format!("{what} is answered with {}: {said}", answer.status));
    }
    Ok(())
}

/// Sends the cookie of a session of its own beside another line of cookies, as some clients do: a WSGI server
/// joins them by a comma. The session lives on.
pub async fn two_lines(attacker: Attacker) -> Result<()> {
    let mut own = Own::log_in(&attacker).await?;
    for _ in 0..20 {
        let whole = line(own.sid.as_bytes());
        let other = match rand::random_range(0..3) {
            0 => line(format!("{}{}", &own.sid[..42], letters(42)).as_bytes()),
            1 => b"tz=UTC".to_vec(),
            _ => whole.clone(),
        };
        let lines = if rand::random() { [whole, other] } else { [other, whole] };
        let path = ["/odoo", "/web/login", "/web/static/x.css"].choose(&mut rand::rng()).expect("some");
        own.follow(&send(&attacker, visit_of("GET", path, "", ""), &lines).await?);
        let alone = [line(own.sid.as_bytes())];
        let answer = send(&attacker, visit_of("GET", "/odoo", "", ""), &alone).await?;
        own.follow(&answer);
        if answer.header("x-standin-login") != own.login {
            attacker.harm(format!("are a logout: {} afterwards", answer.status));
            break;
        }
    }
    Ok(())
}

/// A request's head without its cookies, and its body.
type Visit = (String, String);

fn visit_of(method: &str, path: &str, kind: &str, body: &str) -> Visit {
    let kind = if kind.is_empty() { String::new() } else { format!("content-type: {kind}\r\n") };
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: odoo\r\nconnection: close\r\n{kind}content-length: {length}\r\n"
    );
    (head, body.to_owned())
}

fn any_visit() -> Visit {
    let json = "application/json";
    match rand::random_range(0..7) {
        0 => visit_of("GET", "/odoo", "", ""),
        1 => visit_of("GET", "/web/login", "", ""),
        // Odoo keeps a file of this, also of an id that it does not know.
        2 => visit_of("GET", "/web/login?debug=1", "", ""),
        3 => visit_of("GET", "/web/session/logout", "", ""),
        4 => visit_of(
            "POST",
            "/web/login",
            "application/x-www-form-urlencoded",
            &format!("csrf_token=x&login={OWN}&password=pw-{OWN}"),
        ),
        5 => visit_of(
            "POST",
            "/web/session/authenticate",
            json,
            &format!(
                r#"{{"jsonrpc":"2.0","id":1,"params":{{"db":"odoo","login":"{OWN}","password":"pw-{OWN}"}}}}"#
            ),
        ),
        _ => visit_of("POST", "/web/dataset/call_kw", json, r#"{"jsonrpc":"2.0","id":1,"params":{}}"#),
    }
}

async fn send(attacker: &Attacker, (head, body): Visit, cookies: &[Vec<u8>]) -> Result<Answer> {
    attacker.door.ask(&[head.as_bytes(), &lines_of(cookies), b"\r\n", body.as_bytes()].concat()).await
}

fn lines_of(cookies: &[Vec<u8>]) -> Vec<u8> {
    cookies.iter().flat_map(|line| [b"cookie: ", &line[..], b"\r\n"].concat()).collect()
}
