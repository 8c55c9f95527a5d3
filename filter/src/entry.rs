//! Where Envoy enters: the callbacks of the proxy-wasm ABI 0.2.1 that the filter needs and no others,
//! for each one that is exported is called for every request.

#![allow(missing_docs, reason = "the ABI's specification documents them")]

use crate::{host, vm};

/// The version of the ABI. Envoy looks for the name alone.
#[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
pub extern "C" fn proxy_abi_version_0_2_1() {}

#[cfg(target_arch = "wasm32")]
#[unsafe(no_mangle)]
pub extern "C" fn _initialize() {
    unsafe extern "C" {
        fn __wasm_call_ctors();
    }
    // SAFETY: Envoy initializes the module once, before anything else. Without this call the linker
    // would run these before every callback.
    unsafe { __wasm_call_ctors() };
}

#[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
pub extern "C" fn proxy_on_memory_allocate(size: usize) -> *mut u8 {
    host::allocate(size)
}

#[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
pub extern "C" fn proxy_on_vm_start(_root: u32, _configuration_size: usize) -> bool {
    true
}

#[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
pub extern "C" fn proxy_on_configure(root: u32, _configuration_size: usize) -> bool {
    vm::enter(|vm| vm.configure(root)).unwrap_or(false)
}

#[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
pub extern "C" fn proxy_on_tick(root: u32) {
    vm::enter(|vm| vm.tick(root));
}

#[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
pub extern "C" fn proxy_on_context_create(context: u32, root: u32) {
    vm::enter(|vm| vm.create(context, root));
}

#[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
pub extern "C" fn proxy_on_request_headers(stream: u32, _headers: usize, end: bool) -> vm::Action {
    vm::enter(|vm| vm.request(stream, !end)).unwrap_or(vm::Action::Continue)
}

#[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
pub extern "C" fn proxy_on_response_headers(stream: u32, _headers: usize, _end: bool) -> vm::Action {
    vm::enter(|vm| vm.response(stream)).unwrap_or(vm::Action::Continue)
}

#[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
pub extern "C" fn proxy_on_http_call_response(
    root: u32,
    token: u32,
    headers: usize,
    _body_size: usize,
    _trailers: usize,
) {
    vm::enter(|vm| vm.answered(root, token, headers));
}

#[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
pub extern "C" fn proxy_on_delete(context: u32) {
    vm::enter(|vm| vm.delete(context));
}
