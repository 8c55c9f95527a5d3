//! The protocol of the cache's socket, as docs/orm-cache.md describes it: frames of a length, a version, a
//! kind and a body, numbers in network order.

use std::time::Duration;

use axum::body::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The version of the protocol.
const VERSION: u8 = 1;
/// The longest value.
pub(crate) const LONGEST_VALUE: usize = 2 << 20;
/// The longest frame, without its length: a value and what is said of it.
const LONGEST_FRAME: usize = LONGEST_VALUE + 1_024;
/// Version and kind.
const HEAD: usize = 2;

/// What a value is found by: a digest of everything that it depends on.
pub(crate) type Key = [u8; 32];
/// A database, its code and one of its caches.
pub(crate) type Family = [u8; 16];
/// What a family was valid for: a digest of the signalling sequences.
pub(crate) type Generation = [u8; 16];

/// Why a frame is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("a frame of {0} bytes: {LONGEST_FRAME} are the most")]
    Long(u32),
    #[error("version {0} of the protocol: this is {VERSION}")]
    Version(u8),
    #[error("a frame of an unknown kind or form")]
    Form,
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// What a value is counted under.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Label {
    pub(crate) cache: String,
    pub(crate) method: String,
}

/// A value with what is said of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) family: Family,
    pub(crate) generation: Generation,
    /// How long it took to compute, in microseconds.
    pub(crate) cost_us: u64,
    pub(crate) value: Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Get {
    pub(crate) key: Key,
    /// How long to wait for somebody else who computes it.
    pub(crate) wait: Duration,
    pub(crate) label: Label,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Put {
    pub(crate) key: Key,
    /// The lease under which it was computed; 0: none.
    pub(crate) lease: u64,
    pub(crate) label: Label,
    pub(crate) entry: Entry,
}

/// What is asked of the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Get(Get),
    Put(Put),
    Release {
        key: Key,
        lease: u64,
    },
    /// Whatever of the family is of another generation is of no use any more. It is not answered.
    Invalidate {
        family: Family,
        generation: Generation,
    },
    Stats,
}

/// What it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Value {
        cost_us: u64,
        value: Bytes,
    },
    /// Compute it, and put it, or release the lease.
    Lease(u64),
    /// Another answer follows.
    Wait,
    /// Compute it.
    Miss,
    Done,
    Stats(Vec<u8>),
    /// The connection ends.
    Error(String),
}

/// The parts of a body, from its beginning.
struct Parts(Bytes);

impl Parts {
    fn bytes(&mut self, length: usize) -> Result<Bytes, WireError> {
        if self.0.len() < length {
            return Err(WireError::Form);
        }
        Ok(self.0.split_to(length))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        self.bytes(N)?.as_ref().try_into().map_err(|_| WireError::Form)
    }

    fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_be_bytes)
    }

    /// A name that may be shown to people.
    fn name(&mut self) -> Result<String, WireError> {
        let [length] = self.array()?;
        let name = String::from_utf8(self.bytes(length.into())?.into()).map_err(|_| WireError::Form)?;
        let is_plain = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic());
        is_plain.then_some(name).ok_or(WireError::Form)
    }

    fn label(&mut self) -> Result<Label, WireError> {
        Ok(Label { cache: self.name()?, method: self.name()? })
    }

    fn end(self) -> Result<(), WireError> {
        self.0.is_empty().then_some(()).ok_or(WireError::Form)
    }
}

impl Request {
    /// Reads what follows a frame's length.
    ///
    /// # Errors
    /// If it is of another version, or no request.
    pub(crate) fn parse(frame: Bytes) -> Result<Self, WireError> {
        let mut parts = Parts(frame);
        let [version, kind] = parts.array()?;
        if version != VERSION {
            return Err(WireError::Version(version));
        }
        let request = match kind {
            1 => Self::Get(Get {
                key: parts.array()?,
                wait: Duration::from_millis(u32::from_be_bytes(parts.array()?).into()),
                label: parts.label()?,
            }),
            2 => {
                let (key, lease, cost_us) = (parts.array()?, parts.u64()?, parts.u64()?);
                let (family, generation, label) = (parts.array()?, parts.array()?, parts.label()?);
                let value = std::mem::take(&mut parts.0);
                if value.len() > LONGEST_VALUE {
                    return Err(WireError::Form);
                }
                Self::Put(Put { key, lease, label, entry: Entry { family, generation, cost_us, value } })
            }
            3 => Self::Release { key: parts.array()?, lease: parts.u64()? },
            4 => Self::Invalidate { family: parts.array()?, generation: parts.array()? },
            5 => Self::Stats,
            _ => return Err(WireError::Form),
        };
        parts.end()?;
        Ok(request)
    }
}

impl Reply {
    /// Writes it.
    ///
    /// # Errors
    /// If nobody takes it.
    pub(crate) async fn write(&self, to: &mut (impl AsyncWrite + Unpin)) -> std::io::Result<()> {
        let (kind, head, body): (u8, Vec<u8>, &[u8]) = match self {
            Self::Value { cost_us, value } => (0x81, cost_us.to_be_bytes().into(), value),
            Self::Lease(lease) => (0x82, lease.to_be_bytes().into(), &[]),
            Self::Wait => (0x83, vec![], &[]),
            Self::Miss => (0x84, vec![], &[]),
            Self::Done => (0x85, vec![], &[]),
            Self::Stats(json) => (0x86, vec![], json),
            Self::Error(text) => (0xff, vec![], text.as_bytes()),
        };
        let length = u32::try_from(HEAD + head.len() + body.len()).map_err(std::io::Error::other)?;
        to.write_all(&[&length.to_be_bytes(), &[VERSION, kind][..], &head].concat()).await?;
        to.write_all(body).await?;
        to.flush().await
    }
}

/// The length of the next frame; none at the end. Waiting for its first byte takes any time.
///
/// # Errors
/// If it is too long, or does not come in time.
pub(crate) async fn read_length(
    from: &mut (impl AsyncRead + Unpin),
    patience: Duration,
) -> Result<Option<usize>, WireError> {
    let mut length = [0; 4];
    let (first, rest) = length.split_at_mut(1);
    if from.read(first).await? == 0 {
        return Ok(None);
    }
    within(patience, from.read_exact(rest)).await?;
    let length = u32::from_be_bytes(length);
    let fits = usize::try_from(length).ok().filter(|length| (HEAD..=LONGEST_FRAME).contains(length));
    fits.map(Some).ok_or(WireError::Long(length))
}

/// The rest of a frame.
///
/// # Errors
/// If it does not come in time.
pub(crate) async fn read_frame(
    from: &mut (impl AsyncRead + Unpin),
    length: usize,
    patience: Duration,
) -> Result<Bytes, WireError> {
    let mut frame = vec![0; length];
    within(patience, from.read_exact(&mut frame)).await?;
    Ok(frame.into())
}

async fn within<T>(patience: Duration, work: impl Future<Output = std::io::Result<T>>) -> std::io::Result<T> {
    tokio::time::timeout(patience, work).await.map_err(|_| std::io::ErrorKind::TimedOut)?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, body: &[&[u8]]) -> Bytes {
        [&[VERSION, kind], body.concat().as_slice()].concat().into()
    }

    const LABEL: &[u8] = b"\x06assets\x0dir_asset:Some";

    #[test]
    fn requests_are_read_as_documented() {
        let get = frame(1, &[&[7; 32], &250_u32.to_be_bytes(), LABEL]);
        let label = Label { cache: "assets".into(), method: "ir_asset:Some".into() };
        let expected = Get { key: [7; 32], wait: Duration::from_millis(250), label: label.clone() };
        assert_eq!(Request::parse(get).unwrap(), Request::Get(expected));
        let (lease, cost) = (9_u64.to_be_bytes(), 1_000_u64.to_be_bytes());
        let put = frame(2, &[&[7; 32], &lease, &cost, &[1; 16], &[2; 16], LABEL, b"value"]);
        let value = Bytes::from_static(b"value");
        let entry = Entry { family: [1; 16], generation: [2; 16], cost_us: 1_000, value };
        let expected = Request::Put(Put { key: [7; 32], lease: 9, label, entry });
        assert_eq!(Request::parse(put).unwrap(), expected);
        let release = frame(3, &[&[7; 32], &lease]);
        assert_eq!(Request::parse(release).unwrap(), Request::Release { key: [7; 32], lease: 9 });
        let stale = Request::Invalidate { family: [1; 16], generation: [2; 16] };
        assert_eq!(Request::parse(frame(4, &[&[1; 16], &[2; 16]])).unwrap(), stale);
        assert_eq!(Request::parse(frame(5, &[])).unwrap(), Request::Stats);
    }

    #[test]
    fn what_is_none_is_refused() {
        let wait = 0_u32.to_be_bytes();
        for bad in [
            frame(0, &[]),
            frame(5, &[b"more"]),
            frame(1, &[&[7; 32], &wait, b"\x00\x01x"]),
            frame(1, &[&[7; 32], &wait, b"\x03a\nb\x01x"]),
            frame(1, &[&[7; 32], &wait, LABEL, b"more"]),
            frame(1, &[&[7; 31]]),
            frame(4, &[&[1; 16]]),
            Bytes::new(),
        ] {
            assert!(matches!(Request::parse(bad), Err(WireError::Form)));
        }
        assert!(matches!(Request::parse(Bytes::from_static(&[2, 5])), Err(WireError::Version(2))));
        let huge = vec![0; LONGEST_VALUE + 1];
        let put = frame(2, &[&[0; 32], &[0; 8], &[0; 8], &[0; 16], &[0; 16], LABEL, &huge]);
        assert!(matches!(Request::parse(put), Err(WireError::Form)));
    }

    #[tokio::test]
    async fn a_length_is_believed_up_to_a_limit() {
        let read = async |bytes: &[u8]| read_length(&mut &bytes[..], Duration::from_secs(1)).await;
        assert!(matches!(read(&[]).await, Ok(None)));
        assert!(matches!(read(&[0, 0, 0, 2]).await, Ok(Some(2))));
        assert!(matches!(read(&[0, 0]).await, Err(WireError::Io(_))));
        for length in [0, 1, LONGEST_FRAME as u32 + 1, u32::MAX] {
            assert!(matches!(read(&length.to_be_bytes()).await, Err(WireError::Long(_))), "{length}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300), kind in 0_u8..8) {
            let _ = Request::parse(bytes.clone().into());
            let _ = Request::parse(frame(kind, &[&bytes]));
        }

        #[test]
        fn a_frame_cut_short_is_no_put_of_less(cut in 0_usize..100) {
            let put = frame(2, &[&[7; 32], &[0; 8], &[0; 8], &[1; 16], &[2; 16], LABEL, b"value"]);
            let head = put.len() - 5;
            let cut = put.slice(..cut.min(head - 1));
            prop_assert!(Request::parse(cut).is_err());
        }
    }
}
