-- The few calls of Kong's plugin development kit that the plugin uses, on plain ngx_lua, as Kong documents them.

local kong = { request = {}, client = {}, response = {}, router = {}, service = { request = {} }, log = {}, ctx = {} }

-- kong.ctx.plugin: one table for each request.
setmetatable(kong.ctx, { __index = function(_, name)
  assert(name == "plugin")
  ngx.ctx.plugin = ngx.ctx.plugin or {}
  return ngx.ctx.plugin
end })

-- As in the OpenResty of newer Kongs; that of Debian can.
local read_body = ngx.req.read_body
function ngx.req.read_body()
  if ngx.req.http_version() == 2 and not ngx.var.http_content_length then
    error("http2 requests are not supported without content-length header")
  end
  return read_body()
end

function kong.log.err(...) ngx.log(ngx.ERR, ...) end
function kong.log.warn(...) ngx.log(ngx.WARN, ...) end
function kong.log.notice(...) ngx.log(ngx.NOTICE, ...) end

function kong.request.get_headers(most) return ngx.req.get_headers(most) end
function kong.request.get_method() return ngx.req.get_method() end
function kong.request.get_path_with_query() return ngx.var.request_uri end
function kong.request.get_host() return ngx.var.host end

function kong.request.get_header(name)
  return ngx.var["http_" .. name:lower():gsub("-", "_")]
end

-- The service that the router chose; the tests name the protocol of one in a header.
function kong.router.get_service()
  return { protocol = kong.request.get_header("x-service-protocol") or "http" }
end

function kong.service.request.set_header(name, value)
  assert(ngx.get_phase() == "access")
  ngx.req.set_header(name, value)
end

-- Without trusted_ips the peer, as in Kong.
function kong.client.get_forwarded_ip() return ngx.var.remote_addr end

function kong.response.exit(status, body, headers)
  assert(ngx.get_phase() == "access")
  ngx.status = status
  for name, value in pairs(headers) do
    ngx.header[name] = value
  end
  ngx.header["Content-Length"] = #(body or "")
  ngx.ctx.exited = true
  ngx.print(body)
  return ngx.exit(status)
end

function kong.response.set_header(name, value)
  assert(ngx.get_phase() == "header_filter")
  ngx.header[name] = value
end

function kong.response.clear_header(name)
  assert(ngx.get_phase() == "header_filter")
  ngx.header[name] = nil
end

function kong.response.get_header(name) return ngx.header[name] end

function kong.response.get_status() return ngx.status end

function kong.response.get_source()
  if ngx.ctx.exited then
    return "exit"
  end
  return ngx.var.upstream_header_time and ngx.var.upstream_header_time ~= "-" and "service" or "error"
end

-- The plugin with its configuration: the defaults of its schema, and what is given.
function kong.plugin(name, given)
  local schema = require("kong.plugins." .. name .. ".schema")
  local conf = {}
  for _, part in ipairs(schema.fields) do
    for _, field in ipairs(part.config and part.config.fields or {}) do
      local key, definition = next(field)
      conf[key] = definition.default
    end
  end
  for key, value in pairs(given) do
    assert(conf[key] ~= nil, key)
    conf[key] = value
  end
  _G.kong = kong
  local handler = require("kong.plugins." .. name .. ".handler")
  local phases = {}
  for _, phase in ipairs({ "access", "header_filter", "body_filter", "log" }) do
    phases[phase] = function() return handler[phase](handler, conf) end
  end
  return phases
end

return kong
