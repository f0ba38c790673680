# Kinds of inputs: what one that is more than a table of probabilities does. A new kind has a number (circuit.jl) and its case in each of
# these functions, which is all that evaluation, learning and queries know of it.

"How many entries of the leaf array an input takes: those of its table, and behind them parameters that the table is made of."
num_entries(kind, categories) = kind == POISSON ? 2 : kind == GAUSSIAN ? 4 : Int(categories) + (kind == LOGISTIC ? 2 : 0)

"How many parameters of an input are learned."
num_input_params(kind, categories) =
    kind == CATEGORICAL ? Int(categories) : kind in (BINOMIAL, POISSON) ? 1 : kind in (LOGISTIC, GAUSSIAN) ? 2 : 0

"""
The M-step of input `u`, unless it has less flow than `least`: see [`apply!`](@ref). `flow[range]` are its statistics, of an input with a table the
flow of each category. Inputs that have nothing to learn keep what they are.
"""
function learn_input!(c::Circuit, u, flow::Vector, range, step::Real, pseudocount::Real, least::Real)
    kind = c.kind[u]
    if kind == CATEGORICAL
        apply_shares!(c.leaf, flow, range, step, pseudocount, least)
    elseif kind == BINOMIAL
        learn_binomial!(c, u, flow, range, step, pseudocount, least)
    elseif kind == LOGISTIC
        Base.invokelatest(learn_logistic!, c, u, flow, range, step, pseudocount, least)
    elseif !has_table(kind)
        Base.invokelatest(learn_number!, c, u, flow, range, step, pseudocount, least)
    end
end

"The probability of category `k`, from 0, of input `u`, in Float64: a binomial's also where its table has underflowed."
function probability(c::Circuit, u, k)
    p = c.leaf[c.param_start[u] + k * c.param_stride[u]]
    return has_underflowed(c, u, p) ? exp(log_binomial(c.categories[u] - 1, k, c.success[u])) : Float64(p)
end

"Its logarithm, also where that is below any Float64; of inputs over numbers, the log probability or density of the number `k`."
function log_probability(c::Circuit, u, k)
    has_table(c.kind[u]) || return log_number(c, u, k)
    p = c.leaf[c.param_start[u] + Int(k) * c.param_stride[u]]
    return has_underflowed(c, u, p) ? log_binomial(c.categories[u] - 1, Int(k), c.success[u]) : log(Float64(p))
end

has_underflowed(c::Circuit, u, p) = p < floatmin(Float32) && c.kind[u] == BINOMIAL

"Fills a table with the probabilities of 0..N successes in N trials, each computed in Float64."
function fill_binomial!(table::AbstractVector{Float32}, p::Real)
    N = length(table) - 1
    for x in 0:N
        table[x + 1] = exp(log_binomial(N, x, p))
    end
    return table
end

"The log probability of `x` successes in `N` trials."
log_binomial(N::Integer, x::Integer, p::Real) =
    log_factorial(N) - log_factorial(x) - log_factorial(N - x) +
    # 0 log 0 = 0: a certain outcome has probability 1.
    (x == 0 ? 0.0 : x * log(Float64(p))) + (x == N ? 0.0 : (N - x) * log1p(-Float64(p)))

"log n!: beyond the first, Stirling's series, whose next term is below 1e-11."
function log_factorial(n::Integer)
    n <= 16 && return log(Float64(factorial(n)))
    x = Float64(n)
    return (x + 0.5) * log(x) - x + log(2 * pi) / 2 + 1 / (12 * x) - 1 / (360 * x^3) + 1 / (1260 * x^5)
end

"p <- (1 - s) p + s (sum F x + pseudocount N / 2) / (N (sum F + pseudocount)) for binomial `u`, whose flows are `flow[range]`."
function learn_binomial!(c::Circuit, u, flow::Vector{T}, range, step::T, pseudocount::T, least::T) where {T}
    N = length(range) - 1
    total, successes = pseudocount, pseudocount * N / 2
    for (x, e) in enumerate(range)
        total += flow[e]
        successes += flow[e] * (x - 1)
    end
    if N > 0 && has_flow(total, least)
        c.success[u] = (1 - step) * c.success[u] + step * successes / (N * total)
        fill_binomial!(probabilities(c, u), c.success[u])
    end
end

"One binomial input of `variable` over `N` trials for each probability of success."
function add_binomials!(b::Builder, variable, N, success)
    units = add_table!(b, variable, length(success), N + 1; kind=BINOMIAL, success=success)
    for u in units
        fill_binomial!(probabilities(b, u), b.success[u])
    end
    return units
end
