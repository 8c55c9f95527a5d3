//! Where attackers come in, and bytes that they say there.

use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpSocket, UnixStream},
    time::timeout,
};

/// How long an attacker waits for an answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// What an attacker reads of one.
const LARGEST: u64 = 1 << 20;

/// An address or a socket.
#[derive(Clone)]
pub enum Door {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// A connection to either.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Door {
    /// Comes in, over TCP each time from another address.
    pub async fn open(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Tcp(address) => {
                let socket = TcpSocket::new_v4()?;
                let [a, b] = rand::random::<[u8; 2]>();
                socket.bind(([127, 1 + a % 200, b, 7], 0).into())?;
                Box::new(socket.connect(*address).await?)
            }
            Self::Unix(path) => Box::new(UnixStream::connect(path).await?),
        })
    }

    /// What a client of it calls it.
    pub fn host(&self) -> String {
        match self {
            Self::Tcp(address) => address.to_string(),
            Self::Unix(_) => "localhost".to_owned(),
        }
    }

    /// Says something, and reads the answer to its end.
    pub async fn ask(&self, request: &[u8]) -> Result<Answer> {
        let mut stream = self.open().await?;
        let exchange = async {
            stream.write_all(request).await?;
            let mut bytes = Vec::new();
            stream.take(LARGEST).read_to_end(&mut bytes).await?;
            anyhow::Ok(bytes)
        };
        let bytes = timeout(PATIENCE, exchange).await??;
        let blank = bytes.windows(4).position(|four| four == b"\r\n\r\n").context("no answer")?;
        let head = String::from_utf8_lossy(&bytes[..blank]).into_owned();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?;
        Ok(Answer { status, head, body: bytes[blank + 4..].to_vec() })
    }
}

/// What came back.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    /// A header's value; empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers(name).next().unwrap_or_default()
    }

    /// The session id that it sets.
    pub fn sid(&self) -> Option<&str> {
        let set = self.headers("set-cookie").find_map(|value| value.strip_prefix("session_id="));
        set.and_then(|value| value.split(';').next())
    }

    fn headers(&self, name: &str) -> impl Iterator<Item = &str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(move |(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

/// Waits for the other side's next bytes; an error once it has ended the connection.
pub async fn hear(stream: &mut Box<dyn Stream>) -> Result<()> {
    ensure!(stream.read(&mut [0; 4096]).await? > 0, "ended");
    Ok(())
}
