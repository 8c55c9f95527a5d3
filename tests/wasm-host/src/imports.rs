//! The `env.proxy_*` functions that the filter calls, as Envoy's host does them.

use std::time::Duration;

use wasmtime::Linker;

use crate::{
    abi::{
        CALL_RESPONSE_BODY, Hostcall, LogLevel, Map, PLUGIN_CONFIGURATION, REQUEST_STREAM, RESPONSE_STREAM,
        Status,
    },
    guest::{Caller, give_scratch, hostcall, put, put_u32, slice, split, text},
    headers::Headers,
    state::{Call, LogLine, State},
};

const ENV: &str = "env";

type Answer = wasmtime::Result<u32>;

/// Offers everything that the filter calls; `module`'s other imports trap and name themselves.
pub(crate) fn link(linker: &mut Linker<State>, module: &wasmtime::Module) -> wasmtime::Result<()> {
    linker.func_wrap(ENV, "proxy_log", log)?;
    linker.func_wrap(ENV, "proxy_get_current_time_nanoseconds", current_time)?;
    linker.func_wrap(ENV, "proxy_set_tick_period_milliseconds", set_tick_period)?;
    linker.func_wrap(ENV, "proxy_get_buffer_bytes", get_buffer)?;
    linker.func_wrap(ENV, "proxy_get_property", get_property)?;
    linker.func_wrap(ENV, "proxy_get_header_map_value", get_header)?;
    linker.func_wrap(ENV, "proxy_get_header_map_pairs", get_headers)?;
    linker.func_wrap(ENV, "proxy_replace_header_map_value", replace_header)?;
    linker.func_wrap(ENV, "proxy_remove_header_map_value", remove_header)?;
    linker.func_wrap(ENV, "proxy_get_shared_data", get_shared)?;
    linker.func_wrap(ENV, "proxy_set_shared_data", set_shared)?;
    linker.func_wrap(ENV, "proxy_http_call", http_call)?;
    linker.func_wrap(ENV, "proxy_set_effective_context", set_effective_context)?;
    linker.func_wrap(ENV, "proxy_continue_stream", continue_stream)?;
    linker.func_wrap(ENV, "proxy_define_metric", define_metric)?;
    linker.func_wrap(ENV, "proxy_increment_metric", increment_metric)?;
    linker.func_wrap(ENV, "proxy_record_metric", record_metric)?;
    crate::wasi::link(linker)?;
    linker.define_unknown_imports_as_traps(module)
}

fn log(mut caller: Caller<'_>, level: u32, message: u32, len: u32) -> Answer {
    hostcall(&mut caller, Hostcall::Log, |caller| {
        let (memory, state) = split(caller)?;
        let message = text(memory, message, len)?;
        let level = LogLevel::of(level).ok_or(Status::BadArgument)?;
        state.logs.push(LogLine { level, message });
        Ok(())
    })
}

fn current_time(mut caller: Caller<'_>, to: u32) -> Answer {
    hostcall(&mut caller, Hostcall::CurrentTime, |caller| {
        let (memory, state) = split(caller)?;
        put(memory, to, &state.world.read_clock().to_le_bytes())
    })
}

fn set_tick_period(mut caller: Caller<'_>, milliseconds: u32) -> Answer {
    hostcall(&mut caller, Hostcall::SetTickPeriod, |caller| {
        caller.data_mut().tick_period = Some(Duration::from_millis(milliseconds.into()));
        Ok(())
    })
}

fn get_buffer(mut caller: Caller<'_>, which: u32, start: u32, len: u32, data_to: u32, len_to: u32) -> Answer {
    hostcall(&mut caller, Hostcall::GetBuffer, |caller| {
        let State { scratch, configuration, answer, .. } = caller.data_mut();
        let buffer = match which {
            PLUGIN_CONFIGURATION => configuration,
            CALL_RESPONSE_BODY => {
                let answer = answer.as_ref().filter(|answer| answer.headers.is_some());
                &answer.ok_or(Status::NotFound)?.body
            }
            _ => return Err(Status::NotFound.into()),
        };
        scratch.clear();
        scratch.extend(buffer.iter().skip(start as usize).take(len as usize));
        give_scratch(caller, data_to, len_to)
    })
}

fn get_property(mut caller: Caller<'_>, path: u32, len: u32, data_to: u32, len_to: u32) -> Answer {
    hostcall(&mut caller, Hostcall::GetProperty, |caller| {
        let (memory, state) = split(caller)?;
        let path = slice(memory, path, len)?;
        let value = match (path, path.strip_prefix(b"request\0headers\0")) {
            (b"source\0address", _) => {
                state.streams.get(&state.speaker()).and_then(|stream| stream.source_address.clone())
            }
            (_, Some(name)) => state.map(Map::Request).and_then(|headers| headers.get_joined(name)),
            _ => None,
        };
        state.scratch = value.ok_or(Status::NotFound)?;
        give_scratch(caller, data_to, len_to)
    })
}

fn get_header(mut caller: Caller<'_>, map: u32, key: u32, len: u32, data_to: u32, len_to: u32) -> Answer {
    hostcall(&mut caller, Hostcall::GetHeader, |caller| {
        let (memory, state) = split(caller)?;
        let mut scratch = std::mem::take(&mut state.scratch);
        let map = Map::of(map).and_then(|map| state.map(map)).ok_or(Status::BadArgument)?;
        let value = map.get(slice(memory, key, len)?).ok_or(Status::NotFound)?;
        scratch.clear();
        scratch.extend_from_slice(value);
        state.scratch = scratch;
        give_scratch(caller, data_to, len_to)
    })
}

fn get_headers(mut caller: Caller<'_>, map: u32, data_to: u32, len_to: u32) -> Answer {
    hostcall(&mut caller, Hostcall::GetHeaders, |caller| {
        let state = caller.data_mut();
        let mut scratch = std::mem::take(&mut state.scratch);
        // A map that is not there is an empty one here, in Envoy too.
        match Map::of(map).and_then(|map| state.map(map)) {
            Some(headers) => headers.write_pairs(&mut scratch),
            None => scratch.clear(),
        }
        state.scratch = scratch;
        give_scratch(caller, data_to, len_to)
    })
}

fn replace_header(
    mut caller: Caller<'_>,
    map: u32,
    key: u32,
    key_len: u32,
    value: u32,
    value_len: u32,
) -> Answer {
    hostcall(&mut caller, Hostcall::ReplaceHeader, |caller| {
        let (memory, state) = split(caller)?;
        let map = Map::of(map).and_then(|map| state.map_mut(map)).ok_or(Status::BadArgument)?;
        map.replace(slice(memory, key, key_len)?, slice(memory, value, value_len)?);
        Ok(())
    })
}

fn remove_header(mut caller: Caller<'_>, map: u32, key: u32, len: u32) -> Answer {
    hostcall(&mut caller, Hostcall::RemoveHeader, |caller| {
        let (memory, state) = split(caller)?;
        let map = Map::of(map).and_then(|map| state.map_mut(map)).ok_or(Status::BadArgument)?;
        map.remove(slice(memory, key, len)?);
        Ok(())
    })
}

fn get_shared(mut caller: Caller<'_>, key: u32, len: u32, data_to: u32, len_to: u32, cas_to: u32) -> Answer {
    hostcall(&mut caller, Hostcall::GetShared, |caller| {
        let (memory, State { world, scratch, .. }) = split(caller)?;
        let cas = {
            let shared = world.shared.borrow();
            let (value, cas) = shared.get(slice(memory, key, len)?).ok_or(Status::NotFound)?;
            scratch.clear();
            scratch.extend_from_slice(value);
            cas
        };
        give_scratch(caller, data_to, len_to)?;
        put_u32(split(caller)?.0, cas_to, cas)
    })
}

fn set_shared(
    mut caller: Caller<'_>,
    key: u32,
    key_len: u32,
    value: u32,
    value_len: u32,
    cas: u32,
) -> Answer {
    hostcall(&mut caller, Hostcall::SetShared, |caller| {
        let (memory, state) = split(caller)?;
        let mut shared = state.world.shared.borrow_mut();
        let set = shared.set(slice(memory, key, key_len)?, slice(memory, value, value_len)?, cas);
        Ok(set.map_err(|_| Status::CasMismatch)?)
    })
}

#[allow(clippy::too_many_arguments, reason = "the ABI has them")]
fn http_call(
    mut caller: Caller<'_>,
    cluster: u32,
    cluster_len: u32,
    headers: u32,
    headers_len: u32,
    body: u32,
    body_len: u32,
    _trailers: u32,
    _trailers_len: u32,
    timeout: u32,
    token_to: u32,
) -> Answer {
    hostcall(&mut caller, Hostcall::HttpCall, |caller| {
        let (memory, state) = split(caller)?;
        let headers = Headers::read_pairs(slice(memory, headers, headers_len)?).ok_or(Status::BadArgument)?;
        if [":method", ":path", ":authority"].iter().any(|name| headers.get(name).is_none()) {
            return Err(Status::BadArgument.into());
        }
        if let Some(refusal) = state.refusal {
            return Err(refusal.into());
        }
        state.last_token += 1;
        state.calls_made += 1;
        let call = Call {
            token: state.last_token,
            cluster: text(memory, cluster, cluster_len)?,
            headers,
            body: slice(memory, body, body_len)?.to_vec(),
            timeout: Duration::from_millis(timeout.into()),
            context: state.current,
        };
        put_u32(memory, token_to, call.token)?;
        state.calls.insert(call.token, call);
        Ok(())
    })
}

fn set_effective_context(mut caller: Caller<'_>, context: u32) -> Answer {
    hostcall(&mut caller, Hostcall::SetEffectiveContext, |caller| {
        let state = caller.data_mut();
        if !state.knows(context) {
            return Err(Status::BadArgument.into());
        }
        state.effective = context;
        Ok(())
    })
}

fn continue_stream(mut caller: Caller<'_>, which: u32) -> Answer {
    hostcall(&mut caller, Hostcall::ContinueStream, |caller| {
        let state = caller.data_mut();
        let speaker = state.speaker();
        // Envoy does nothing for a context without a stream.
        let Some(stream) = state.streams.get_mut(&speaker) else { return Ok(()) };
        let side = match which {
            REQUEST_STREAM => &mut stream.request,
            RESPONSE_STREAM => &mut stream.response,
            _ => return Err(Status::BadArgument.into()),
        };
        side.resumed += 1;
        side.is_paused = false;
        // Either way it is the request's headers that Envoy takes from the module at once.
        stream.request.is_open = false;
        Ok(())
    })
}

fn define_metric(mut caller: Caller<'_>, kind: u32, name: u32, len: u32, id_to: u32) -> Answer {
    hostcall(&mut caller, Hostcall::DefineMetric, |caller| {
        let (memory, state) = split(caller)?;
        let name = text(memory, name, len)?;
        let id = match kind {
            0 | 1 => state.world.metrics.borrow_mut().define(&name, kind == 0),
            _ => return Err(Status::BadArgument.into()),
        };
        put_u32(memory, id_to, id)
    })
}

fn increment_metric(mut caller: Caller<'_>, id: u32, offset: i64) -> Answer {
    hostcall(&mut caller, Hostcall::IncrementMetric, |caller| {
        let mut metrics = caller.data().world.metrics.borrow_mut();
        let metric = metrics.get_mut(id).ok_or(Status::NotFound)?;
        if metric.is_counter && offset <= 0 {
            return Err(Status::BadArgument.into());
        }
        metric.value += offset;
        Ok(())
    })
}

fn record_metric(mut caller: Caller<'_>, id: u32, value: i64) -> Answer {
    hostcall(&mut caller, Hostcall::RecordMetric, |caller| {
        let mut metrics = caller.data().world.metrics.borrow_mut();
        let metric = metrics.get_mut(id).ok_or(Status::NotFound)?;
        metric.value = if metric.is_counter { metric.value + value } else { value };
        Ok(())
    })
}
