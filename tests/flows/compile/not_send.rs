// A flow that holds over a wait what cannot go to another thread.
//~ future cannot be sent between threads safely
//~ within `{async block
//~ the trait `Send` is not implemented for `Rc<str>`
//~ future is not `Send` as this value is used across an await
//~ has type `Rc<str>` which is not `Send`
//~ required by a bound in `FlowsBuilder::flow`

use std::rc::Rc;
use std::time::Duration;

use callback_flows::{Flow, Flows, FlowsBuilder};

pub fn flows() -> FlowsBuilder {
    Flows::builder().flow("order", 1, |flow: Flow, item: String| async move {
        let item: Rc<str> = item.into();
        flow.sleep(Duration::from_secs(5)).await;
        Ok(item.len())
    })
}
