# Extensions (ext/) are what LVDJuice does together with packages that it does not depend on: Project.toml names them.

const PACKAGE = dirname(dirname(@__DIR__))

"""
    load_extension(name)

Load the packages that the extension `name` is for, and the extension. Julia 1.9 and later do the second part themselves,
and also where a program loads those packages; for an older Julia the same file, `ext/NAME.jl`, is included here.

Throws an `ArgumentError` if there is no such extension, or a package that it is for is not installed.
"""
function load_extension(name::String)
    foreach(package -> Base.require(Main, Symbol(package)), triggers(name))
    if isdefined(Base, :get_extension)
        Base.get_extension(@__MODULE__, Symbol(name)) === nothing && error("$name: its packages are loaded, but it is not")
    elseif !isdefined(Main, Symbol(name))
        Base.include(Main, joinpath(PACKAGE, "ext", "$name.jl"))
    end
    return nothing
end

"The packages that an extension is for. Julia 1.5 has no TOML reader; the section holds lines like `Name = \"Package\"`."
function triggers(name)
    section = match(r"^\[extensions\]\n((?:[^\[].*\n|\n)*)"m, read(joinpath(PACKAGE, "Project.toml"), String))
    known = section === nothing ? [] : [m[1] => m[2] for m in eachmatch(r"^(\w+) *= *(.+)$"m, section[1])]
    found = findfirst(pair -> first(pair) == name, known)
    found === nothing && throw(ArgumentError("extension: found $name, want one of $(isempty(known) ? "none" : join(first.(known), ", "))"))
    return [m[1] for m in eachmatch(r"\"(\w+)\"", last(known[found]))]
end

"`circuit` as Juice.jl's, what `head`, from 0, reaches; nothing: all heads. An extension's (ext/LVDJuiceProbabilisticCircuitsExt.jl)."
function juice_circuit end

"Juice.jl's own likelihoods of our circuits: an extension's, too."
function juice_log_likelihoods! end

"""
    installed_version(package, uuid) -> String

The version of a Julia package that could be loaded here, without loading it; empty if there is none.
"""
function installed_version(package::String, uuid::String)
    source = Base.locate_package(Base.PkgId(Base.UUID(uuid), package))
    source === nothing && return ""
    project = joinpath(dirname(dirname(source)), "Project.toml")
    found = isfile(project) ? match(r"^version *= *\"(.+?)\""m, read(project, String)) : nothing
    return found === nothing ? "unknown" : String(found[1])
end
