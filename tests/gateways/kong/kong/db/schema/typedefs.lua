-- The types that the plugin's schema refers to.

return {
  protocols_http = { type = "set" },
  url = function(definition)
    definition.type = "string"
    return definition
  end,
}
