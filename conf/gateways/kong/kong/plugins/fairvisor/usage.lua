-- Finds the usage in the text of an LLM response: a JSON document, or a stream of server-sent events.
--
-- OpenAI, Anthropic, Gemini and those who speak like them: the member is called `usage` or `usageMetadata`, in the
-- document or in its `response` or `message`. Of a stream, and of a JSON array as Gemini sends it, the last value of
-- every member counts: Anthropic has the input at the start and the output at the end, and the numbers are totals so
-- far. Events are read as they come, so that a long stream costs no more memory than its longest event.

local cjson = require "cjson.safe"

local Usage = {}
local Reader = {}
Reader.__index = Reader


-- A reader that keeps at most so many bytes: of a document all, of a stream the event that has not ended yet.
function Usage.reader(most_bytes)
  return setmetatable({ most_bytes = most_bytes, pieces = {}, kept_bytes = 0 }, Reader)
end


local function member(holder)
  if type(holder) ~= "table" then
    return nil
  end
  for _, name in ipairs({ "usage", "usageMetadata" }) do
    if type(holder[name]) == "table" then
      return holder[name]
    end
  end
end


local function inside(document)
  if type(document) == "table" then
    return member(document) or member(document.response) or member(document.message)
  end
end


function Reader:merge(document)
  for name, value in pairs(inside(document) or {}) do
    if value ~= cjson.null then
      self.merged = self.merged or {}
      self.merged[name] = value
    end
  end
end


-- What is longer than most_bytes is forgotten: a document whole, an event up to its end.
function Reader:keep(text)
  self.kept_bytes = self.kept_bytes + #text
  if self.kept_bytes <= self.most_bytes then
    self.pieces[#self.pieces + 1] = text
  else
    self.pieces = {}
  end
end


function Reader:taken()
  local text = table.concat(self.pieces)
  self.pieces, self.kept_bytes = {}, 0
  return text
end


function Reader:line()
  local data = self:taken():match("^data:%s*(.*)$")
  if data then
    self:merge(cjson.decode(data))
  end
end


-- The next piece of the response.
function Reader:feed(text)
  if self.is_document == nil then
    local first = text:match("%S")
    if not first then
      return
    end
    self.is_document = first == "{" or first == "["
  end
  local from = 1
  while not self.is_document do
    local at = text:find("[\r\n]", from)
    if not at then
      break
    end
    self:keep(text:sub(from, at - 1))
    self:line()
    from = at + 1
  end
  self:keep(text:sub(from))
end


-- The usage as the provider worded it, nil when there is none.
function Reader:read()
  if self.is_document then
    local document = cjson.decode(self:taken())
    self:merge(document)
    for _, each in ipairs(type(document) == "table" and document or {}) do
      self:merge(each)
    end
  else
    self:line()
  end
  return self.merged
end


return Usage
