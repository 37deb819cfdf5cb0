// A message that nobody handles.
//~ instances of `Order` do not handle `String`

use stable_interfaces::{Context, ContextError, Handle, HostBuilder, Interface, StableInterface};

pub struct Order;

impl StableInterface for Order {
    const NAME: &'static str = "order";
    type Error = ContextError;
}

impl Handle<u32> for Order {
    type Reply = u64;

    async fn handle(&mut self, _: &mut Context, _: u32) -> Result<u64, ContextError> {
        unreachable!()
    }
}

pub fn orders(host: &mut HostBuilder) -> Interface<Order> {
    host.interface(|_| Order).forward::<String>("place").register().unwrap()
}
