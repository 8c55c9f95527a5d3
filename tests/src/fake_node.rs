//! A node that answers its probes as a test wants.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

/// A node with its answers written down; 200 as Odoo's `/web/health` gives it. After the last it answers that again and again.
pub struct FakeNode {
    /// Where it answers.
    pub address: SocketAddr,
    answered: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<Result<()>>,
}

impl FakeNode {
    /// Starts one that gives these status codes, one after the other.
    ///
    /// # Errors
    /// If it cannot listen.
    pub async fn start(statuses: &[u16]) -> Result<Self> {
        Self::saying(statuses, r#"{"status": "pass"}"#).await
    }

    /// Starts another server, which says something else with each 200.
    ///
    /// # Errors
    /// If it cannot listen.
    pub async fn saying(statuses: &[u16], body: &'static str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (answered, statuses) = (Arc::new(AtomicUsize::new(0)), statuses.to_vec());
        let counter = Arc::clone(&answered);
        let task = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await?;
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await? > 0 {}
                let number = counter.fetch_add(1, Ordering::SeqCst);
                let status = statuses.get(number).or(statuses.last()).context("no status")?;
                let body = if *status == 200 { body } else { "" };
                let length = body.len();
                let answer = format!(
                    "HTTP/1.1 {status} \r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
                );
                stream.write_all(answer.as_bytes()).await?;
            }
        });
        Ok(Self { address, answered, task })
    }

    /// How many probes it has answered.
    pub fn answered(&self) -> usize {
        self.answered.load(Ordering::SeqCst)
    }

    /// Itself as `--node` wants it.
    pub fn spec(&self, id: &str) -> String {
        format!("{id}={}", self.address)
    }
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        self.task.abort();
    }
}
