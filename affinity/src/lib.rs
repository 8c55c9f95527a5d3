//! Where a session belongs, and how Mooring's parts say it to each other.
//!
//! Everything here is a pure function of its arguments: no clock, no network, no files. The filter
//! (in wasm) and the sidecar (native) both call it, and for the same input both get the same answer,
//! bit for bit; `tests/golden.rs` holds them to that.

pub mod address;
pub mod bounded;
pub mod cookie;
pub mod key;
pub mod membership;
pub mod plan;
pub mod port;
pub mod rendezvous;
pub mod wire;

pub use key::{IdProof, SessionKey};
pub use membership::{Membership, Node, NodeId, NodeState};
pub use port::Port;
