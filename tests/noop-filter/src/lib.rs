//! A proxy-wasm filter that does nothing: it is entered as often as Mooring's and makes no hostcall.
//! What a request costs through it is the price of any wasm filter in Envoy.

/// Where Envoy enters. Only in wasm: natively there is nothing here.
#[cfg(target_arch = "wasm32")]
mod entry {
    #![allow(missing_docs)]

    use proxy_wasm::{
        traits::{Context, HttpContext, RootContext},
        types::ContextType,
    };

    struct Root;

    impl Context for Root {}

    impl RootContext for Root {
        fn create_http_context(&self, _context_id: u32) -> Option<Box<dyn HttpContext>> {
            Some(Box::new(Stream))
        }

        fn get_type(&self) -> Option<ContextType> {
            Some(ContextType::HttpContext)
        }
    }

    struct Stream;

    impl Context for Stream {}

    impl HttpContext for Stream {}

    proxy_wasm::main! {{
        proxy_wasm::set_root_context(|_| Box::new(Root));
    }}
}
