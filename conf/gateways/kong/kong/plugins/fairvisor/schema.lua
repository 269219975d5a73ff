local typedefs = require "kong.db.schema.typedefs"

return {
  name = "fairvisor",
  fields = {
    { protocols = typedefs.protocols_http },
    { config = {
        type = "record",
        fields = {
          -- Where Fairvisor Edge listens.
          { url = typedefs.url({ required = true, default = "http://127.0.0.1:8080" }) },
          -- FAIRVISOR_DECISION_TOKEN, where one is set.
          { token = { type = "string", referenceable = true, encrypted = true } },
          -- Longer than the longest delay_ms of your policies, if they throttle.
          { timeout_ms = { type = "integer", default = 1000, gt = 0 } },
          -- What a request gets that cannot be decided: 503, or it passes, unlimited.
          { fail_open = { type = "boolean", default = false } },
          -- Send bodies along, for token limits, llm:model and loop detection.
          { send_body = { type = "boolean", default = true } },
          -- How much of a body is sent. Of a longer one Fairvisor gets the beginning and the size.
          { max_body_bytes = { type = "integer", default = 1048576, gt = 0 } },
          -- How much of a response is kept to read its usage: a JSON document, or one event of a stream.
          { max_response_bytes = { type = "integer", default = 1048576, gt = 0 } },
        },
    } },
  },
}
