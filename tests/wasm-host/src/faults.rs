//! Hostcalls that fail now and then, as they may in Envoy.

use crate::abi::{Hostcall, Status};

/// Which share of the hostcalls fails. The same seed fails the same ones.
#[derive(Clone, Debug)]
pub struct Faults {
    state: u64,
    per_mille: u64,
}

impl Faults {
    /// Lets `per_mille` of a thousand of those calls fail that can.
    pub fn new(seed: u64, per_mille: u64) -> Self {
        Self { state: seed | 1, per_mille }
    }

    /// The failure of the next call, if it is to fail.
    pub(crate) fn next(&mut self, call: Hostcall) -> Option<Status> {
        let possible = failures(call);
        if possible.is_empty() || self.random() % 1_000 >= self.per_mille {
            return None;
        }
        let place = self.random() as usize % possible.len();
        possible.get(place).copied()
    }

    /// Marsaglia's xorshift64: enough to choose failures.
    fn random(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state >> 11
    }
}

/// How a call may fail although its arguments are right. What Envoy never returns for one (it has
/// header maps or it has not, and it knows its contexts) is not among them: the SDK panics on that.
fn failures(call: Hostcall) -> &'static [Status] {
    match call {
        Hostcall::GetHeader | Hostcall::GetBuffer | Hostcall::GetShared => &[Status::NotFound],
        Hostcall::GetProperty => &[Status::NotFound, Status::SerializationFailure, Status::InternalFailure],
        Hostcall::SetShared => &[Status::CasMismatch],
        Hostcall::HttpCall => &[Status::BadArgument, Status::InternalFailure],
        Hostcall::IncrementMetric => &[Status::NotFound, Status::BadArgument],
        Hostcall::RecordMetric => &[Status::NotFound],
        _ => &[],
    }
}
