//! Connections that are kept, slowly fed or filled with rubbish, at any door.

use std::time::Duration;

use anyhow::{Result, bail};
use rand::RngCore;
use tokio::{
    io::AsyncWriteExt,
    time::{sleep, timeout},
};

use crate::{
    attackers::Attacker,
    door::{Stream, hear},
};

/// The head of a handshake, to which headers may be added.
pub const WEBSOCKET: &str = "GET /websocket HTTP/1.1\r\nhost: odoo\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const GET: &[u8] = b"GET /web/login HTTP/1.1\r\nhost: odoo\r\n\r\n";

/// Keeps a connection until the other side ends it, whatever it says.
async fn keep(stream: &mut Box<dyn Stream>) -> Result<()> {
    loop {
        hear(stream).await?;
    }
}

/// Says nothing.
pub async fn idle(attacker: Attacker) -> Result<()> {
    keep(&mut attacker.door.open().await?).await
}

/// Says a byte a second of a request's head.
pub async fn slow_headers(attacker: Attacker) -> Result<()> {
    let mut stream = attacker.door.open().await?;
    let head = b"GET /web/login HTTP/1.1\r\nhost: odoo\r\nx-slow: ";
    for byte in head.iter().chain(std::iter::repeat(&b'a')) {
        stream.write_all(&[*byte]).await?;
        if let Ok(heard) = timeout(Duration::from_secs(1), hear(&mut stream)).await {
            return heard;
        }
    }
    Ok(())
}

/// Announces a body and does not send it.
pub async fn unsent_body(attacker: Attacker, path: &str) -> Result<()> {
    let mut stream = attacker.door.open().await?;
    let expect = if rand::random() { "expect: 100-continue\r\n" } else { "" };
    let head = format!("POST {path} HTTP/1.1\r\nhost: odoo\r\n{expect}content-length: 4000\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    keep(&mut stream).await
}

/// Sends a body that never ends, a little at a time.
pub async fn endless_body(attacker: Attacker, path: &str) -> Result<()> {
    let mut stream = attacker.door.open().await?;
    let head = format!("POST {path} HTTP/1.1\r\nhost: odoo\r\ntransfer-encoding: chunked\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    loop {
        stream.write_all(b"3\r\nabc\r\n").await?;
        if let Ok(heard) = timeout(Duration::from_millis(300), hear(&mut stream)).await {
            return heard;
        }
    }
}

/// Says something that is no protocol.
pub async fn junk(attacker: Attacker) -> Result<()> {
    let mut bytes = vec![0; rand::random_range(1..5_000)];
    rand::rng().fill_bytes(&mut bytes);
    if rand::random() {
        // A beginning that is taken seriously.
        bytes.splice(0..0, b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\nhost: ".iter().copied());
    }
    say(attacker, &bytes).await
}

/// Speaks TLS where there is none.
pub async fn tls_hello(attacker: Attacker) -> Result<()> {
    // A record of 512 bytes with a ClientHello of TLS 1.2, whose lists are random.
    let mut hello = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    hello.resize(5 + 512, 0);
    rand::rng().fill_bytes(&mut hello[11..]);
    say(attacker, &hello).await
}

/// Ends its side after half a request, or after a whole one.
pub async fn half_closed(attacker: Attacker) -> Result<()> {
    let mut stream = attacker.door.open().await?;
    let length = if rand::random() { GET.len() } else { rand::random_range(1..GET.len()) };
    stream.write_all(&GET[..length]).await?;
    stream.shutdown().await?;
    finish(&mut stream).await
}

/// Asks for many things at once and reads none of the answers for a while.
pub async fn pipelined(attacker: Attacker) -> Result<()> {
    let mut stream = attacker.door.open().await?;
    stream.write_all(&GET.repeat(200)).await?;
    sleep(Duration::from_secs(2)).await;
    finish(&mut stream).await
}

/// Opens a websocket and says nothing.
pub async fn silent_websocket(attacker: Attacker) -> Result<()> {
    let mut stream = attacker.door.open().await?;
    stream.write_all(format!("{WEBSOCKET}\r\n").as_bytes()).await?;
    keep(&mut stream).await
}

/// Speaks on a websocket before it is open.
pub async fn hasty_websocket(attacker: Attacker) -> Result<()> {
    say(attacker, format!("{WEBSOCKET}\r\n\u{8}\u{0}").as_bytes()).await
}

async fn say(attacker: Attacker, bytes: &[u8]) -> Result<()> {
    let mut stream = attacker.door.open().await?;
    stream.write_all(bytes).await?;
    finish(&mut stream).await
}

/// Hears what there is to be heard, for a few seconds.
pub async fn finish(stream: &mut Box<dyn Stream>) -> Result<()> {
    let mut heard = false;
    let ended = timeout(Duration::from_secs(3), async {
        while hear(stream).await.is_ok() {
            heard = true;
        }
    });
    match ended.await {
        Ok(()) if !heard => bail!("ended without a word"),
        _ => Ok(()),
    }
}
