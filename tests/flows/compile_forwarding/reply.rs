// A reply that cannot be read.
//~ `Receipt` cannot cross from host to host
//~ derive `serde::Serialize` and `serde::Deserialize` for it
//~ ::forward`

use stable_interfaces::{Context, ContextError, Handle, HostBuilder, Interface, StableInterface};

pub struct Order;

impl StableInterface for Order {
    const NAME: &'static str = "order";
    type Error = ContextError;
}

pub struct Receipt;

impl Handle<String> for Order {
    type Reply = Receipt;

    async fn handle(&mut self, _: &mut Context, _: String) -> Result<Receipt, ContextError> {
        unreachable!()
    }
}

pub fn orders(host: &mut HostBuilder) -> Interface<Order> {
    host.interface(|_| Order).forward::<String>("place").register().unwrap()
}
