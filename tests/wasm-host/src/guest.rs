//! The module's memory, and what every hostcall has in common.

use std::time::Instant;

use crate::{
    abi::{Hostcall, Status},
    state::State,
};

pub(crate) type Caller<'a> = wasmtime::Caller<'a, State>;

/// Why a hostcall ends early.
pub(crate) enum Halt {
    /// The module is told.
    Status(Status),
    /// The module itself trapped, in its allocator.
    Trap(wasmtime::Error),
}

impl From<Status> for Halt {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl From<wasmtime::Error> for Halt {
    fn from(error: wasmtime::Error) -> Self {
        Self::Trap(error)
    }
}

pub(crate) type Outcome = Result<(), Halt>;

/// Counts a hostcall, lets it fail if it is its turn, else does it.
pub(crate) fn hostcall(
    caller: &mut Caller<'_>,
    which: Hostcall,
    work: impl FnOnce(&mut Caller<'_>) -> Outcome,
) -> wasmtime::Result<u32> {
    let state = caller.data_mut();
    state.counts[which as usize] += 1;
    if let Some(failure) = state.faults.as_mut().and_then(|faults| faults.next(which)) {
        return Ok(failure as u32);
    }
    let start = state.spent.is_some().then(Instant::now);
    let outcome = work(caller);
    if let (Some(start), Some(spent)) = (start, caller.data_mut().spent.as_mut()) {
        *spent += start.elapsed();
    }
    match outcome {
        Ok(()) => Ok(Status::Ok as u32),
        Err(Halt::Status(status)) => Ok(status as u32),
        Err(Halt::Trap(error)) => Err(error),
    }
}

/// The module's memory beside the state.
pub(crate) fn split<'a>(caller: &'a mut Caller<'_>) -> Result<(&'a mut [u8], &'a mut State), Status> {
    let memory = caller.data().memory.ok_or(Status::InternalFailure)?;
    Ok(memory.data_and_store_mut(caller))
}

/// Part of the module's memory.
pub(crate) fn slice(memory: &[u8], start: u32, len: u32) -> Result<&[u8], Status> {
    let end = start.checked_add(len).ok_or(Status::InvalidMemoryAccess)?;
    memory.get(start as usize..end as usize).ok_or(Status::InvalidMemoryAccess)
}

/// Part of the module's memory as text.
pub(crate) fn text(memory: &[u8], start: u32, len: u32) -> Result<String, Status> {
    slice(memory, start, len).map(|bytes| String::from_utf8_lossy(bytes).into_owned())
}

/// Writes bytes to the module's memory.
pub(crate) fn put(memory: &mut [u8], at: u32, bytes: &[u8]) -> Outcome {
    let at = at as usize;
    let place = memory.get_mut(at..at + bytes.len()).ok_or(Status::InvalidMemoryAccess)?;
    place.copy_from_slice(bytes);
    Ok(())
}

pub(crate) fn put_u32(memory: &mut [u8], at: u32, number: u32) -> Outcome {
    put(memory, at, &number.to_le_bytes())
}

/// Gives the module a copy of what is in the scratch buffer: in memory that the module allocates.
/// Nothing is given as a null pointer, as Envoy does.
pub(crate) fn give_scratch(caller: &mut Caller<'_>, pointer_to: u32, size_to: u32) -> Outcome {
    let len = caller.data().scratch.len() as u32;
    let mut pointer = 0;
    if len > 0 {
        let allocate = caller.data().allocate.clone().ok_or(Status::InternalFailure)?;
        pointer = allocate.call(&mut *caller, len)?;
    }
    let (memory, state) = split(caller)?;
    if len > 0 {
        put(memory, pointer, &state.scratch)?;
    }
    put_u32(memory, pointer_to, pointer)?;
    put_u32(memory, size_to, len)
}
