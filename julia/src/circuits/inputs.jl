# Kinds of inputs: what one that is more than a table of probabilities does.

"The probability of category `k`, from 0, of input `u`, in Float64: a binomial's also where its table has underflowed."
function probability(c::Circuit, u, k)
    p = c.leaf[c.param_start[u] + k * c.param_stride[u]]
    return has_underflowed(c, u, p) ? exp(log_binomial(c.categories[u] - 1, k, c.success[u])) : Float64(p)
end

"Its logarithm, also where that is below any Float64."
function log_probability(c::Circuit, u, k)
    p = c.leaf[c.param_start[u] + k * c.param_stride[u]]
    return has_underflowed(c, u, p) ? log_binomial(c.categories[u] - 1, k, c.success[u]) : log(Float64(p))
end

has_underflowed(c::Circuit, u, p) = p < floatmin(Float32) && c.kind[u] == BINOMIAL

"The probabilities of 0..N successes in `N` trials, each computed in Float64."
binomial_table(N::Integer, p::Real) = fill_binomial!(Vector{Float32}(undef, N + 1), p)

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

"One binomial input of `variable` over `N` trials for each probability of success."
function add_binomials!(b::Builder, variable, N, success)
    units = add_table!(b, variable, length(success), N + 1; kind=BINOMIAL, success=success)
    for u in units
        fill_binomial!(probabilities(b, u), b.success[u])
    end
    return units
end
