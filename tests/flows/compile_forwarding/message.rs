// A message that cannot be written.
//~ `Place` cannot cross from host to host
//~ derive `serde::Serialize` and `serde::Deserialize` for it
//~ required by a bound in `InterfaceBuilder::<'a, I>::forward`

use stable_interfaces::{Context, ContextError, Handle, HostBuilder, Interface, StableInterface};

pub struct Order;

impl StableInterface for Order {
    const NAME: &'static str = "order";
    type Error = ContextError;
}

pub struct Place;

impl Handle<Place> for Order {
    type Reply = u64;

    async fn handle(&mut self, _: &mut Context, _: Place) -> Result<u64, ContextError> {
        unreachable!()
    }
}

pub fn orders(host: &mut HostBuilder) -> Interface<Order> {
    host.interface(|_| Order).forward::<Place>("place").register().unwrap()
}
