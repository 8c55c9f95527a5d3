//! A cable to a server that can be slow, or cut.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// How often a cut cable is looked at.
const LOOK: Duration = Duration::from_millis(10);

#[derive(Default)]
struct State {
    cut: AtomicBool,
    delay_ms: AtomicU64,
}

/// Carries connections to a server until it is dropped.
pub struct Cable {
    /// Where to connect to.
    pub address: SocketAddr,
    state: Arc<State>,
    carrier: JoinHandle<()>,
}

impl Cable {
    pub async fn to(server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, state) = (listener.local_addr()?, Arc::new(State::default()));
        let shared = Arc::clone(&state);
        let carrier = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(connect(near, server, Arc::clone(&shared)));
            }
        });
        Ok(Self { address, state, carrier })
    }

    /// From now on nothing arrives, and nobody is told: as where a network is partitioned.
    pub fn cut(&self) {
        self.state.cut.store(true, Ordering::Relaxed);
    }

    /// From now on everything takes this much longer.
    pub fn delay(&self, time: Duration) {
        self.state.delay_ms.store(time.as_millis() as u64, Ordering::Relaxed);
    }

    pub fn mend(&self) {
        self.state.cut.store(false, Ordering::Relaxed);
        self.delay(Duration::ZERO);
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.carrier.abort();
    }
}

async fn connect(near: TcpStream, server: SocketAddr, state: Arc<State>) {
    while state.cut.load(Ordering::Relaxed) {
        tokio::time::sleep(LOOK).await;
    }
    let Ok(far) = TcpStream::connect(server).await else { return };
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    tokio::spawn(carry(near_in, far_out, Arc::clone(&state)));
    carry(far_in, near_out, state).await;
}

async fn carry(mut from: impl AsyncReadExt + Unpin, mut to: impl AsyncWriteExt + Unpin, state: Arc<State>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        tokio::time::sleep(Duration::from_millis(state.delay_ms.load(Ordering::Relaxed) / 2)).await;
        while state.cut.load(Ordering::Relaxed) {
            tokio::time::sleep(LOOK).await;
        }
        let Some(bytes) = buffer.get(..read) else { return };
        if to.write_all(bytes).await.is_err() {
            return;
        }
    }
}
