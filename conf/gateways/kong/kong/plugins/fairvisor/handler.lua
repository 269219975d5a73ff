-- Asks Fairvisor Edge about each request, shows the client what is left of its limits, and settles the reservations of
-- token limits with the usage in the response. The edge alone knows what a request means and how a provider words its
-- usage: it gets the body and the usage object as they came.

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

-- What the client sees of an allow. Of a reject it sees everything but the fields of the edge's own connection.
local SHOWN = {
  "RateLimit", "RateLimit-Policy", "RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset",
  "X-Fairvisor-Warning", "X-Fairvisor-Loop-Count",
}
local OF_CONNECTION = {
  ["connection"] = true, ["keep-alive"] = true, ["transfer-encoding"] = true, ["content-length"] = true, ["date"] = true,
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


-- The size of a body that nginx cannot read ahead: it counts as one of max_body_bytes where its sender does not say.
local function said_bytes(conf)
  return tonumber(kong.request.get_header("content-length")) or conf.max_body_bytes
end


-- The body up to max_body_bytes, and the size of all of it. A body above client_body_buffer_size is in a file.
local function read_body(conf)
  local is_read, why = pcall(ngx.req.read_body)
  if not is_read then  -- newer OpenResty reads no body of HTTP/2 without a Content-Length
    kong.log.notice("fairvisor cannot read a body ahead: ", why)
    return "", said_bytes(conf)
  end
  local name = ngx.req.get_body_file()
  if not name then
    local body = ngx.req.get_body_data() or ""
    return body:sub(1, conf.max_body_bytes), #body
  end
  local file, err = io.open(name, "rb")
  if not file then
    kong.log.err("fairvisor cannot read the body: ", err)
    return "", said_bytes(conf)
  end
  local body = file:read(conf.max_body_bytes) or ""
  local size = file:seek("end")
  file:close()
  return body, size
end


-- gRPC messages are no JSON, and reading a stream of them ahead would hold it up until its end.
local function sends_body(conf)
  local service = kong.router.get_service()
  return conf.send_body and not (service and service.protocol:sub(1, 4) == "grpc")
end


local function question_body(conf, headers)
  if not sends_body(conf) then
    return ""
  end
  local body, size = read_body(conf)
  if size > #body then
    headers["x-fairvisor-body-bytes"] = size
  end
  return body
end


local function ask(conf, path, headers, body)
  local client = http.new()
  client:set_timeout(conf.timeout_ms)
  return client:request_uri(conf.url .. path, {
    method = "POST",
    headers = headers,
    body = body,
    keepalive_timeout = KEEPALIVE_MS,
  })
end


local function of_allow(headers)
  local shown = {}
  for _, name in ipairs(SHOWN) do
    shown[name] = headers[name]
  end
  return shown
end


local function of_reject(headers)
  local shown = {}
  for name, value in pairs(headers) do
    if not OF_CONNECTION[name:lower()] then
      shown[name] = value
    end
  end
  return shown
end


-- The provider is asked for an answer in which the usage can be read; without a reservation it encodes as it likes.
local function expect_usage(conf, reservation)
  local context = kong.ctx.plugin
  context.reservation = reservation
  context.usage = usage.reader(conf.max_response_bytes)
  kong.service.request.set_header("Accept-Encoding", "identity")
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
  local headers = question(conf)
  local answer, err = ask(conf, "/v1/decision", headers, question_body(conf, headers))
  if not answer then
    return undecided(conf, err)
  end
  if answer.status == 204 or answer.status == 200 then
    kong.ctx.plugin.shown = of_allow(answer.headers)
    local reservation = answer.headers["X-Fairvisor-Reservation"]
    if reservation then
      expect_usage(conf, reservation)
    end
    return
  end
  if answer.status >= 400 and answer.status < 500 then
    return kong.response.exit(answer.status, answer.body, of_reject(answer.headers))
  end
  return undecided(conf, "status " .. answer.status)
end


function Fairvisor:header_filter(conf)
  local shown = kong.ctx.plugin.shown or {}
  if shown["RateLimit"] or shown["RateLimit-Limit"] then  -- the application's own, in either form, would contradict
    for _, name in ipairs(SHOWN) do
      kong.response.clear_header(name)
    end
  end
  for name, value in pairs(shown) do
    kong.response.set_header(name, value)
  end
end


function Fairvisor:body_filter(conf)
  local reader = kong.ctx.plugin.usage
  if reader and ngx.arg[1] then
    reader:feed(ngx.arg[1])
  end
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
    document.usage = context.usage:read()
    if not document.usage then  -- the reservation stays as it is: a use that cannot be read is never free
      kong.log.notice("fairvisor found no usage in a response, content-encoding ",
                      kong.response.get_header("Content-Encoding") or "identity")
      return
    end
  end
  local ok, err = ngx.timer.at(0, settle, conf, document)
  if not ok then
    kong.log.warn("fairvisor did not settle a reservation: ", err)
  end
end


return Fairvisor
