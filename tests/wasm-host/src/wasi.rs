//! The few WASI functions that Rust's standard library pulls in, as Envoy offers them.

use wasmtime::Linker;

use crate::{
    abi::{Hostcall, LogLevel},
    guest::{Caller, hostcall, put, put_u32, slice, split},
    state::{LogLine, State},
};

const MODULE: &str = "wasi_snapshot_preview1";
const STDERR: u32 = 2;

pub(crate) fn link(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.func_wrap(MODULE, "fd_write", fd_write)?;
    linker.func_wrap(MODULE, "random_get", random_get)?;
    linker.func_wrap(MODULE, "environ_get", environ_get)?;
    linker.func_wrap(MODULE, "environ_sizes_get", environ_sizes_get)?;
    linker.func_wrap(MODULE, "proc_exit", proc_exit)?;
    Ok(())
}

/// What the module prints is a line in the log; a panic's message comes this way.
fn fd_write(mut caller: Caller<'_>, fd: u32, list: u32, count: u32, written: u32) -> wasmtime::Result<u32> {
    hostcall(&mut caller, Hostcall::FdWrite, |caller| {
        let (memory, state) = split(caller)?;
        let mut bytes = Vec::new();
        for place in 0..count {
            let entry = slice(memory, list + place * 8, 8)?;
            let number =
                |at: usize| entry[at..at + 4].iter().rev().fold(0_u32, |n, byte| n << 8 | u32::from(*byte));
            bytes.extend_from_slice(slice(memory, number(0), number(4))?);
        }
        let level = if fd == STDERR { LogLevel::Error } else { LogLevel::Info };
        let message = String::from_utf8_lossy(&bytes).trim_end_matches('\n').to_owned();
        state.logs.push(LogLine { level, message });
        put_u32(memory, written, bytes.len() as u32)
    })
}

/// Not random at all, so that a test that failed fails again.
fn random_get(mut caller: Caller<'_>, to: u32, len: u32) -> wasmtime::Result<u32> {
    hostcall(&mut caller, Hostcall::Random, |caller| {
        let bytes: Vec<u8> = (0..len).map(|n| n.wrapping_mul(167).wrapping_add(13) as u8).collect();
        put(split(caller)?.0, to, &bytes)
    })
}

fn environ_sizes_get(mut caller: Caller<'_>, count_to: u32, bytes_to: u32) -> wasmtime::Result<u32> {
    hostcall(&mut caller, Hostcall::EnvironmentSizes, |caller| {
        let (memory, state) = split(caller)?;
        let variables = state.world.environment.borrow();
        put_u32(memory, count_to, variables.len() as u32)?;
        put_u32(memory, bytes_to, variables.iter().map(|text| text.len() as u32 + 1).sum())
    })
}

/// Writes the variables, each with a zero byte behind it, and a list of where each begins.
fn environ_get(mut caller: Caller<'_>, list: u32, bytes: u32) -> wasmtime::Result<u32> {
    hostcall(&mut caller, Hostcall::Environment, |caller| {
        let (memory, state) = split(caller)?;
        let mut at = bytes;
        for (place, text) in state.world.environment.borrow().iter().enumerate() {
            put_u32(memory, list + place as u32 * 4, at)?;
            put(memory, at, text.as_bytes())?;
            put(memory, at + text.len() as u32, &[0])?;
            at += text.len() as u32 + 1;
        }
        Ok(())
    })
}

fn proc_exit(_: Caller<'_>, code: u32) -> wasmtime::Result<()> {
    Err(wasmtime::Error::msg(format!("the module called proc_exit({code})")))
}
