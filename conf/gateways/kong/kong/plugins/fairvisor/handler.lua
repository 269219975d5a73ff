-- Asks Fairvisor Edge about each request, shows the client what is left of its limits, and settles the reservations of
-- token limits with the usage that the response tells. What a request means and what is decided is Fairvisor's
-- business; how an LLM provider words its usage is too: it gets the object as it came.

local cjson = require "cjson.safe"
local http = require "resty.http"
local usage = require "kong.plugins.fairvisor.usage"

local kong = kong
local ngx = ngx

local Fairvisor = {
  PRIORITY = 905,  -- after authentication, just before Kong's own rate limiting (910 and below are traffic control)
  VERSION = "0.1.0",
}

-- What a client must not tell Fairvisor, and what belongs to its own connection (RFC 9110 7.6.1).
local DROPPED = {
  ["host"] = true, ["connection"] = true, ["keep-alive"] = true, ["te"] = true, ["trailer"] = true,
  ["upgrade"] = true, ["transfer-encoding"] = true, ["content-length"] = true, ["expect"] = true,
  ["proxy-connection"] = true, ["forwarded"] = true,
  ["x-country-code"] = true, ["x-asn"] = true, ["x-asn-type"] = true, ["x-tor-exit"] = true,
  ["x-token-estimate"] = true,
}
local DROPPED_PREFIXES = { "x-original-", "x-forwarded-", "x-fairvisor-" }

local SHOWN = {
  "RateLimit", "RateLimit-Policy", "RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset",
  "X-Fairvisor-Warning", "X-Fairvisor-Loop-Count",
}
local REFUSAL = {
  "Cache-Control", "Content-Type", "Retry-After", "WWW-Authenticate", "X-Fairvisor-Reason", "X-Should-Retry",
}

local UNDECIDED = [[{"error":{"message":"The request could not be decided.","type":"unavailable","param":null,"code":503}}]]

local MAX_HEADERS = 1000
local KEEPALIVE_MS = 60000


local function is_dropped(name)
  if DROPPED[name] or name:find("_", 1, true) then  -- a WSGI server may take an underscore for a dash
    return true
  end
  for _, prefix in ipairs(DROPPED_PREFIXES) do
    if name:sub(1, #prefix) == prefix then
      return true
    end
  end
  return false
end


local function question(conf)
  local headers = {}
  for name, value in pairs(kong.request.get_headers(MAX_HEADERS)) do
    name = name:lower()
    if not is_dropped(name) then
      headers[name] = value
    end
  end
  headers["x-original-method"] = kong.request.get_method()
  headers["x-original-uri"] = kong.request.get_path_with_query()
  headers["x-original-host"] = kong.request.get_host()
  headers["x-forwarded-for"] = kong.client.get_forwarded_ip()
  headers["x-fairvisor-token"] = conf.token
  return headers
end


local function json_body(conf)
  local content_type = kong.request.get_header("content-type") or ""
  if conf.send_body and content_type:find("application/json", 1, true) then
    return kong.request.get_raw_body()
  end
end


local function ask(conf, path, headers, body)
  local client = http.new()
  client:set_timeout(conf.timeout_ms)
  return client:request_uri(conf.url .. path, {
    method = "POST",
    headers = headers,
    body = body or "",
    keepalive_timeout = KEEPALIVE_MS,
  })
end


local function chosen(headers, ...)
  local found = {}
  for _, names in ipairs({ ... }) do
    for _, name in ipairs(names) do
      found[name] = headers[name]
    end
  end
  return found
end


local function undecided(conf, why)
  kong.log.err("fairvisor gave no decision: ", why)
  if not conf.fail_open then
    return kong.response.exit(503, UNDECIDED, {
      ["Cache-Control"] = "no-store", ["Content-Type"] = "application/json", ["Retry-After"] = "1",
    })
  end
end


function Fairvisor:access(conf)
  local answer, err = ask(conf, "/v1/decision", question(conf), json_body(conf))
  if not answer then
    return undecided(conf, err)
  end
  if answer.status == 204 or answer.status == 200 then
    kong.ctx.plugin.shown = chosen(answer.headers, SHOWN)
    kong.ctx.plugin.reservation = answer.headers["X-Fairvisor-Reservation"]
    return
  end
  if answer.status >= 400 and answer.status < 500 then
    return kong.response.exit(answer.status, answer.body, chosen(answer.headers, SHOWN, REFUSAL))
  end
  return undecided(conf, "status " .. answer.status)
end


function Fairvisor:header_filter(conf)
  for name, value in pairs(kong.ctx.plugin.shown or {}) do
    kong.response.set_header(name, value)
  end
end


-- Keeps the end of the response: usage comes last, in JSON as in a stream.
function Fairvisor:body_filter(conf)
  local context = kong.ctx.plugin
  if not context.reservation then
    return
  end
  context.tail = ((context.tail or "") .. (ngx.arg[1] or "")):sub(-conf.max_response_bytes)
end


local function settle(premature, conf, document)
  if premature then
    return
  end
  local headers = { ["content-type"] = "application/json", ["x-fairvisor-token"] = conf.token }
  local answer, err = ask(conf, "/v1/usage", headers, cjson.encode(document))
  if not answer or answer.status ~= 204 then
    kong.log.warn("fairvisor did not settle a reservation: ", err or answer.status)
  end
end


function Fairvisor:log(conf)
  local context = kong.ctx.plugin
  if not context.reservation then
    return
  end
  local document = { reservation = context.reservation }
  if kong.response.get_source() ~= "service" or kong.response.get_status() >= 400 then
    document.failed = true
  else
    document.usage = usage.read(context.tail or "")
    if not document.usage then
      return  -- the reservation stands: a use that cannot be read is never free
    end
  end
  local ok, err = ngx.timer.at(0, settle, conf, document)
  if not ok then
    kong.log.warn("fairvisor did not settle a reservation: ", err)
  end
end


return Fairvisor
