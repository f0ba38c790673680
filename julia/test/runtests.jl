# The tests of the Julia package: `julia --project=julia julia/test/runtests.jl`, from the top of the checkout. Names behind it, such as
# `dense evaluate`, are of those files that run, or, as `-dense -evaluate`, of those that do not; some use what others define before them,
# in the order below.

using LVDJuice, LinearAlgebra, Random, Test

include("reference.jl")

BLAS.set_num_threads(1)

close_to(a, b; rtol=1e-5) = all(abs.(a .- b) .<= rtol .* max.(abs.(a), abs.(b)) .+ 1e-12)

"What an error says; nothing where there is none."
message_of(f) = try
    f()
    ""
catch e
    sprint(showerror, e)
end

const FILES = split("""
    circuit inputs structure builders evaluate losses dense einet em jpc queries answers prune grow joint emissions offsets field shared
    backends device bench codec windows door""")

const LEFT_OUT = [name[2:end] for name in ARGS if startswith(name, '-')]
const NAMED = filter(name -> !startswith(name, '-'), ARGS)

@testset "LVDJuice" begin
    for name in setdiff(isempty(NAMED) ? FILES : NAMED, LEFT_OUT)
        include("test_$name.jl")
    end
end
